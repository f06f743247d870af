"""`policy: process`: another Python answers, and its errors, deaths and end are those of a built-in policy."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.policies.remote.requests import chunk_request
from tests.policies.remote.servers import own_python
from wpray.errors import BadInputError, InvalidRequestError
from wpray.policies.process import worker
from wpray.policies.process.policy import ProcessPolicy, ProcessSettings, WorkerDiedError

HERE = str(Path(__file__).parent)
TARGET = "policy_for_workers:Echo"
OLD_PYTHON = Path.home() / ".pyenv/versions/3.9.18/bin/python"


def _policy(**more: Any) -> ProcessPolicy:
    given: dict[str, Any] = {"target": TARGET, "path": [HERE], "python": sys.executable, **more}
    return ProcessPolicy(ProcessSettings(**given))


def test_a_batch_goes_there_and_back() -> None:
    policy = _policy(args={"offset": 10.0}, execute_steps=2)
    requests = [chunk_request(policy.spec, trial) for trial in range(3)]
    replies = policy.predict(requests)
    for trial, (request, reply) in enumerate(zip(requests, replies, strict=True)):
        seen = request.observation
        assert reply.actions.shape == (4, 7) and reply.metrics == {"count": 3.0}
        expected = [seen.proprio[0] + 10, seen.images["wrist"].mean(), trial]
        assert reply.actions[0, :3].tolist() == expected
    assert policy.spec.execute_steps == 2 and policy.spec.max_batch_size == 8 and not policy.spec.remote
    assert policy.files == (Path(HERE) / "policy_for_workers.py",)
    assert policy.sources.facts["process"]["numpy"] == np.__version__
    policy.close()


@pytest.mark.skipif(not OLD_PYTHON.exists(), reason="no Python 3.9 at hand")
def test_a_python_3_9_with_an_old_numpy_answers(tmp_path: Path) -> None:
    subprocess.run([str(OLD_PYTHON), "-m", "venv", str(tmp_path / "venv")], check=True, timeout=120)
    python = tmp_path / "venv" / "bin" / "python"
    command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "numpy<2", "msgpack"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"cannot install numpy there: {done.stderr[-200:]}")
    policy = _policy(python=str(python))
    versions = policy.sources.facts["process"]
    assert versions["python"].startswith("3.9.") and versions["numpy"].startswith("1.")
    assert policy.predict([chunk_request(policy.spec, 5)])[0].actions[0, 2] == 5
    policy.close()


def test_an_error_comes_by_its_name_with_its_traceback() -> None:
    policy = _policy()
    with pytest.raises(RuntimeError, match="cannot count that") as failure:
        policy.predict([chunk_request(policy.spec, words="raise")])
    assert type(failure.value).__name__ == "ArithmeticError" and "policy_for_workers.py" in str(failure.value)
    with pytest.raises(InvalidRequestError, match="not this request"):
        policy.predict([chunk_request(policy.spec, words="refuse")])
    assert len(policy.predict([chunk_request(policy.spec)])) == 1
    policy.close()


def test_a_worker_that_dies_in_a_batch_is_started_again_and_asked_one_by_one() -> None:
    policy = _policy()
    requests = [chunk_request(policy.spec, trial, words="die" if trial == 1 else "live") for trial in range(3)]
    replies = policy.predict(requests)
    assert [reply.actions[0, 2] for reply in replies] == [0, 1, 2]
    assert [reply.metrics["count"] for reply in replies] == [1, 1, 1]
    with pytest.raises(WorkerDiedError, match="signal 9"):
        policy.predict([chunk_request(policy.spec, words="die always")])
    policy.close()


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"python": "/no/such/python"}, "policy_args.python: cannot run /no/such/python .No such file"),
        ({"python": "/bin/true"}, "policy_args.python: /bin/true ends at once .exit code 0"),
        ({"target": "nowhere:Policy"}, "policy_args.target: nowhere:Policy cannot be made .ModuleNotFoundError"),
        ({"target": "policy_for_workers:Nobody"}, "AttributeError"),
        ({"args": {"fail_to_start": True}}, r"OSError: no weights at hand, .*policy_for_workers.py:\d+"),
        ({"args": {"color": 1}}, "unexpected keyword argument 'color'"),
    ],
)
def test_what_cannot_be_started_is_one_line(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadInputError, match=reason) as failure:
        _policy(**given)
    assert "\n" not in str(failure.value)


def test_the_worker_ends_with_its_parent_even_if_the_policy_never_returns(tmp_path: Path) -> None:
    program = f"""
import sys, threading
from tests.policies.remote.requests import chunk_request
from wpray.policies.process.policy import ProcessPolicy, ProcessSettings
policy = ProcessPolicy(ProcessSettings(target={TARGET!r}, path=[{HERE!r}], python=sys.executable))
print(policy._worker._process.pid, flush=True)
policy.predict([chunk_request(policy.spec, words="hang")])
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    time.sleep(0.5)
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not _runs(pid):
            return
        time.sleep(0.1)
    os.kill(pid, 9)
    pytest.fail("the worker outlived its parent")


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_the_worker_needs_nothing_of_wpray() -> None:
    source = Path(worker.__file__).read_text()
    assert "import wpray" not in source and "from wpray" not in source


def test_an_own_python_has_what_it_is_given(tmp_path: Path) -> None:
    python = own_python(tmp_path / "venv", "msgpack")
    with pytest.raises(BadInputError, match="ModuleNotFoundError: No module named 'numpy'"):
        _policy(python=str(python))
