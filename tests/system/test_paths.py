"""`~` and environment variables in paths: expanded once, for every path, on the machine that uses them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import get_args

import pytest

from wpray.cli.configuration import expand_paths, read_config, validate
from wpray.config import Config, path_fields
from wpray.errors import BadInputError
from wpray.jobs.fetch import local_folder
from wpray.jobs.manifest import RunManifest
from wpray.jobs.package import submission
from wpray.jobs.remote import from_home
from wpray.provenance.settings import fingerprint, outcome_fields
from wpray.system.paths import expand

NEEDED = ("vlm_checkpoint", "ae_checkpoint", "dataset_statistics_path")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set the user's home; the working directory is another."""
    there = tmp_path / "home"
    there.mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(there))
    monkeypatch.setenv("DATA", "~/data")
    monkeypatch.setenv("BUCKET", "s3://bucket")
    monkeypatch.setenv("DOLLAR", "a$HOME")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("UNSET", raising=False)
    return there


def test_every_path_of_the_configuration_is_expanded_and_nothing_else(home: Path) -> None:
    file = home / "c.yaml"
    pair = {"vlm_checkpoint", "ae_checkpoint"}
    for names in (set(path_fields()) - pair, set(path_fields()) - {"joint_checkpoint"}):  # they exclude each other
        file.write_text("\n".join(f"{name}: ~/{name}" for name in names))
        config = read_config(["--config", "~/c.yaml"])
        assert {name: getattr(config, name) for name in names} == {name: str(home / name) for name in names}
    assert not list(Path().iterdir())


def test_path_fields_are_those_that_look_like_paths() -> None:
    endings = ("_dir", "_path", "_checkpoint", "_states_file")
    alike = {
        name
        for name, info in Config.model_fields.items()
        if name.endswith(endings) and (info.annotation is str or get_args(info.annotation))
    }
    assert set(path_fields()) == alike


@pytest.mark.parametrize(
    ("given", "expanded"),
    [
        ("~", "HOME"),
        ("~/a~b", "HOME/a~b"),
        ("$HOME/a", "HOME/a"),
        ("${HOME}/a", "HOME/a"),
        ("$DATA/a", "HOME/data/a"),
        ("$BUCKET/a", "s3://bucket/a"),
        ("x/$DOLLAR", "x/a$HOME"),
        ("a/~/b", "a/~/b"),
        ("./~x", "./~x"),
        ("a$", "a$"),
        ("5$ each", "5$ each"),
        ("a/../b//c/", "a/../b//c/"),  # to the letter: outcomes are filed under it
        ("s3://bucket/~/$HOME", "s3://bucket/~/$HOME"),
        ("file:///mnt/$HOME", "file:///mnt/$HOME"),
    ],
)
def test_a_path_is_expanded_once_and_a_url_never(home: Path, given: str, expanded: str) -> None:
    assert expand(given) == (str(home) if expanded.startswith("HOME") else "") + expanded.removeprefix("HOME")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("$UNSET/a", "the environment variable UNSET is not set"),
        ("${UNSET}", "the environment variable UNSET is not set"),
        ("$EMPTY/a", "the environment variable EMPTY is empty"),
        ("${HOME", "${HOME is not an environment variable"),
        ("${}", "${} is not an environment variable"),
        ("${HOME:-x}", "is not an environment variable"),
        ("~nobody-has-this-name/a", "write ./~nobody-has-this-name"),
        ("a\0b", "control characters"),
        ("a\\0b", "control characters"),
        ("a\nb", "control characters"),
        ("a\x1b[2J", "control characters"),
        ("a\udcff", "UTF-8"),
        ("a" * 256, "255"),
        ("a/" * 2048, "4095"),
    ],
)
@pytest.mark.parametrize("name", [*path_fields(), "config"])
def test_a_path_that_means_nothing_is_one_line(home: Path, given: str, reason: str, name: str) -> None:
    with pytest.raises(BadInputError) as caught:
        read_config([f"--{name}", given, "--policy", "noop"])
    assert name in str(caught.value) and reason in str(caught.value)
    assert not list(Path().iterdir())


def test_the_resolved_path_goes_to_run_json_and_into_the_fingerprint(home: Path) -> None:
    needed = [text for name in NEEDED for text in (f"--{name}", f"~/{name}")]
    there = [text for name in NEEDED for text in (f"--{name}", str(home / name))]
    config = read_config(needed)
    assert outcome_fields(config)["vlm_checkpoint"] == str(home / "vlm_checkpoint")
    assert fingerprint(config) == fingerprint(read_config(there))
    # What run.json says is never expanded again.
    written = json.loads(json.dumps(config.model_copy(update={"output_dir": "a$HOME"}).model_dump(mode="json")))
    assert validate(written).output_dir == "a$HOME"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "556d2d30bf808a2f"),
        (
            {"vlm_checkpoint": "a/../vlm/", "ae_checkpoint": "/m//ae", "dataset_statistics_path": "./s.json"},
            "d102a06c7fa423fb",
        ),
    ],
)
def test_fingerprints_of_older_runs_stay(options: dict[str, str], expected: str) -> None:
    assert fingerprint(expand_paths(Config.model_validate(options))) == expected


def test_a_submitted_run_s_paths_are_expanded_on_the_cluster(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["--policy", "noop", "--output_dir", "$DATA/run", "--tokenizer_path", "~/t", "--video_out_path", "v"]
    config = read_config([*argv, "--ray.submit", "http://head:8265"])
    sent = Config.model_validate(submission(config, "job", plan=False).config)
    assert (sent.output_dir, sent.tokenizer_path) == ("$DATA/run", "~/t")
    monkeypatch.setenv("HOME", "/home/cluster")
    monkeypatch.setenv("DATA", "/scratch")
    there = from_home(sent, Path("/home/cluster"))
    assert (there.output_dir, there.tokenizer_path) == ("/scratch/run", "/home/cluster/t")
    assert there.video_out_path == "/home/cluster/v"
    monkeypatch.delenv("DATA")
    with pytest.raises(BadInputError, match="DATA is not set"):
        from_home(sent, Path("/home/cluster"))


@pytest.mark.parametrize(
    ("output_dir", "here"),
    [("a/b", "a/b"), ("~/a", "runs/run1"), ("$DATA/a", "runs/run1"), ("x${DATA}", "runs/run1"), ("/a", "runs/run1")],
)
def test_results_are_fetched_to_no_folder_called_tilde(home: Path, output_dir: str, here: str) -> None:
    assert local_folder(output_dir, RunManifest("/scratch/run1", "id", ())) == Path(here)


@pytest.mark.parametrize("name", [*path_fields(), "config"])
def test_a_pipe_is_refused_and_not_waited_for(home: Path, name: str) -> None:
    os.mkfifo(home / "pipe")
    for path in (home / "pipe", Path("/dev/null")):
        with pytest.raises(BadInputError, match=rf"{name}: {path} is a pipe, a socket or a device"):
            read_config([f"--{name}", str(path), "--policy", "noop"])


def test_a_config_may_come_through_a_shell_s_pipe() -> None:
    ours, theirs = os.pipe()
    os.write(theirs, b"seed: 3")
    os.close(theirs)
    try:
        assert read_config(["--config", f"/dev/fd/{ours}"]).seed == 3
    finally:
        os.close(ours)
