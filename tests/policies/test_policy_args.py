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
from wpray.provenance.settings import differing_fields, fingerprint, outcome_fields
from wpray.results.writer import RunFolder
from wpray.run.evaluation import evaluate
from wpray.run.output import check_what_is_there, choose_folder

SOURCE = '''
from typing import Annotated

from pydantic import BaseModel, Field, SecretStr
from wpray.policies.base import PolicySpec
from wpray.policies.noop import NoopPolicy
from wpray.policies.settings import NO_OUTCOME

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

class Limits(BaseModel):
    timeout_s: Annotated[float, NO_OUTCOME] = 1.0
    steps: int = 8

class Served(Own):
    class Settings(BaseModel):
        url: Annotated[str, NO_OUTCOME] = Field("http://a", min_length=2)
        model: str = "small"
        limits: Limits = Limits()
        sizes: list[int] = [1]

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
    assert shown.endswith("--policy_args.nested.depth int (default: 1)"), "a terminal shows the end"
    for policy, end in (("noop", "noop has no settings of its own."), ("waypoint_vla", "above that are in no group.")):
        with pytest.raises(SystemExit):
            read_config(["--policy", policy, "--help"])
        assert " ".join(capsys.readouterr().out.split()).endswith(end)


def test_settings_are_part_of_what_a_run_is() -> None:
    plain, same, other = (
        _config(*URL, *more) for more in ([], ["--policy_args.code", "7"], ["--policy_args.code", "8"])
    )
    assert outcome_fields(plain)["policy_args.url"] == "http://a"
    assert fingerprint(plain) == fingerprint(same) != fingerprint(other)  # a default is the same, said or not
    assert fingerprint(Config(task_suite="fake")) == fingerprint(Config(task_suite="fake", policy_args={}))


SERVED = "policy_args_lab.own:Served"
AWAY = ["--policy_args.url", "http://b", "--policy_args.limits.timeout_s", "2"]


def test_settings_that_decide_nothing_are_no_part_of_it() -> None:
    plain, away = _config(policy=SERVED), _config(*AWAY, policy=SERVED)
    assert away.policy_args == {"url": "http://b", "limits": {"timeout_s": 2.0}}
    assert outcome_fields(plain) == outcome_fields(away) and fingerprint(plain) == fingerprint(away)
    other = _config(*AWAY, "--policy_args.model", "large", "--policy_args.limits.steps", "4", policy=SERVED)
    assert other.policy_args["url"] == "http://b"
    new = {name: value for name, value in outcome_fields(other).items() if name not in outcome_fields(plain)}
    assert new == {"policy_args.model": "large", "policy_args.limits": {"steps": 4}}


def test_a_run_goes_on_with_another_url_and_not_with_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wpray.run.evaluation._carry_out", _nothing)
    monkeypatch.setattr("wpray.run.evaluation.Pools.join_ray", lambda *_: None)
    options = ["--output_dir", "out", "--tasks", "0", "--task_suite", "fake", "--policy", SERVED]
    with pytest.raises(BadInputError, match="no episode"):
        evaluate(read_config(options))
    with pytest.raises(BadInputError, match="no episode"):
        evaluate(read_config([*options, *AWAY]))
    info = json.loads((tmp_path / "out" / "run.json").read_text())
    assert len(info["sessions"]) == 2 and info["config"]["policy_args"]["url"] == "http://b"
    assert info["policy_settings"]["limits"] == {"timeout_s": 2.0, "steps": 8}
    with pytest.raises(BadInputError, match=r"policy_args.model \(None there, 'large' here\)"):
        evaluate(read_config([*options, *AWAY, "--policy_args.model", "large"]))


def test_a_run_from_before_settings_were_marked_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its outcome_fields hold the url that it was given."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "fake_policy_args_lab_1"
    folder.mkdir(parents=True)
    old = _config(*AWAY, policy=SERVED)
    fields = outcome_fields(old) | {"policy_args.url": "http://b", "policy_args.limits": {"timeout_s": 2.0}}
    info = {"run_id": "x", "started_at": "2026", "state": "stopped", "config": old.model_dump(mode="json")}
    (folder / "run.json").write_text(json.dumps(info | {"outcome_fields": fields, "fingerprint": "of then"}))
    new = _config("--policy_args.url", "http://c", policy=SERVED)
    assert differing_fields(fields, new) == []
    monkeypatch.setattr("wpray.run.output.safe_name", lambda _: "fake_policy_args_lab")
    assert choose_folder(new).path == Path("runs/fake_policy_args_lab_1")
    check_what_is_there(RunFolder(folder), new)
    with pytest.raises(BadInputError, match=r"policy_args.model"):
        check_what_is_there(RunFolder(folder), _config("--policy_args.model", "large", policy=SERVED))


def test_run_json_has_every_setting_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wpray.run.evaluation._carry_out", _nothing)
    monkeypatch.setattr("wpray.run.evaluation.Pools.join_ray", lambda *_: None)
    config = read_config(["--task_suite", "fake", "--policy", OWN, *URL, "--policy_args.token", "sesame"])
    with pytest.raises(BadInputError, match="no episode"):
        evaluate(config.model_copy(update={"output_dir": "out", "tasks": [0]}))
    text = (tmp_path / "out" / "run.json").read_text()
    info = json.loads(text)
    assert info["policy_settings"]["sizes"] == [1, 2] and info["config"]["policy_args"]["url"] == "http://a"
    assert "sesame" not in text


def _nothing(*_: object) -> None:
    raise BadInputError("no episode")
