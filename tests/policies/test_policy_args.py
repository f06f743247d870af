"""A policy's own settings: read, refused, shown by `--help`, and part of what a run is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from wpray.cli.configuration import read_config
from wpray.config import Config
from wpray.errors import BadInputError
from wpray.policies.factory import build_policy, policy_spec, with_policy_args
from wpray.provenance.settings import fingerprint, outcome_fields
from wpray.run.evaluation import evaluate

SOURCE = '''
from pydantic import BaseModel, Field, SecretStr
from wpray.policies.base import PolicySpec
from wpray.policies.noop import NoopPolicy

class Nested(BaseModel):
    depth: int = 1

class Own(NoopPolicy):
    class Settings(BaseModel):
        """Where the server is."""
        url: str = Field(description="the server's address")
        sizes: list[int] = [1, 2]
        code: str = "7"
        fast: bool = False
        token: SecretStr | None = None
        nested: Nested = Nested()

    @classmethod
    def spec_of(cls, settings):
        return PolicySpec("own", False, False, num_gpus=0, max_batch_size=len(settings.sizes))

    def __init__(self, settings):
        super().__init__(self.spec_of(settings))
        self.settings = settings

class Fixed(NoopPolicy):
    spec = PolicySpec("fixed", False, False, num_gpus=0, max_batch_size=3)

    def __init__(self):
        super().__init__(self.spec)

class Deaf:
    spec = PolicySpec("deaf", False, False, num_gpus=0, max_batch_size=3)

class Odd(Fixed):
    Settings = dict

class Blank:
    pass
'''
OWN = "policy_args_lab.own:Own"
URL = ["--policy_args.url", "http://a"]


@pytest.fixture(autouse=True)
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "policy_args_lab").mkdir()
    (tmp_path / "policy_args_lab" / "own.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.startswith("policy_args_lab")]:
        monkeypatch.delitem(sys.modules, name)


def _config(*argv: str, policy: str = OWN) -> Config:
    return with_policy_args(read_config(["--task_suite", "fake", "--policy", policy, *argv]))


def test_text_of_the_command_line_becomes_what_the_model_says() -> None:
    text = ["--policy_args.sizes", "[4, 5, 6]", "--policy_args.code=007", "--policy_args.fast", "true"]
    config = _config(*URL, *text, "--policy_args.nested.depth", "3")
    given = {"url": "http://a", "sizes": [4, 5, 6], "code": "007", "fast": True, "nested": {"depth": 3}}
    assert config.policy_args == given
    assert policy_spec(config).max_batch_size == 3
    assert build_policy(config).settings.code == "007"  # type: ignore[attr-defined]


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("policy_args: {url: http://b, fast: true}\npolicy_args.code: x\n")
    config = _config("--config", str(tmp_path / "run.yaml"), *URL)
    assert config.policy_args == {"url": "http://a", "fast": True, "code": "x"}


def test_a_class_without_settings_is_made_without_arguments() -> None:
    config = _config(policy="policy_args_lab.own:Fixed")
    assert (policy_spec(config).max_batch_size, build_policy(config).spec.name) == (3, "fixed")


@pytest.mark.parametrize(
    ("policy", "argv", "hint"),
    [
        ("Own", [], "policy_args.url: is missing, and has no default"),
        ("Own", ["--policy_args.ulr", "x"], "unknown key policy_args.ulr: did you mean policy_args.url?"),
        ("Own", [*URL, "--policy_args.nested.dept", "2"], "did you mean policy_args.nested.depth?"),
        ("Own", [*URL, "--policy_args.sizes", "many"], "policy_args.sizes: Input should be a valid list, not 'many'"),
        ("Own", [*URL, *URL], "--policy_args.url: is given twice"),
        ("Own", ["--policy_args.url"], "--policy_args.url: expected one argument"),
        ("Own", ["--policy_args.url", "--seed", "3"], "--policy_args.url: expected one argument"),
        ("Fixed", URL, "policy_args.url: policy policy_args_lab.own:Fixed has no settings of its own"),
        ("Fxed", [], "policy_args_lab.own has no Fxed; did you mean Fixed?"),
        ("Deaf", [], "asks for the method plan, which the class lacks"),
        ("Odd", [], "Settings of policy_args_lab.own:Odd must be a pydantic BaseModel"),
        ("Blank", [], "policy_args_lab.own:Blank has no spec or spec_of"),
        ("", [], "cannot import policy_args_lab.own:"),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_starts(policy: str, argv: list[str], hint: str) -> None:
    with pytest.raises(BadInputError) as caught:
        policy_spec(_config(*argv, policy=f"policy_args_lab.own:{policy}"))
    assert hint in str(caught.value) and "\n" not in str(caught.value)


def test_help_shows_the_policys_own_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_config(["--policy", OWN, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Where the server is. --policy_args.url str the server's address (required)" in shown
    assert "--policy_args.nested.depth int (default: 1)" in shown


def test_settings_are_part_of_what_a_run_is() -> None:
    plain, same, other = (
        _config(*URL, *more) for more in ([], ["--policy_args.code", "7"], ["--policy_args.code", "8"])
    )
    assert outcome_fields(plain)["policy_args.url"] == "http://a"
    assert fingerprint(plain) == fingerprint(same) != fingerprint(other)  # a default is the same, said or not
    assert fingerprint(Config(task_suite="fake")) == fingerprint(Config(task_suite="fake", policy_args={}))


def test_run_json_has_every_setting_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wpray.run.evaluation._carry_out", _nothing)
    config = read_config(["--task_suite", "fake", "--policy", OWN, *URL, "--policy_args.token", "sesame"])
    with pytest.raises(BadInputError, match="no episode"):
        evaluate(config.model_copy(update={"output_dir": "out", "tasks": [0]}))
    text = (tmp_path / "out" / "run.json").read_text()
    info = json.loads(text)
    assert info["policy_settings"]["sizes"] == [1, 2] and info["config"]["policy_args"]["url"] == "http://a"
    assert "sesame" not in text


def _nothing(*_: object) -> None:
    raise BadInputError("no episode")
