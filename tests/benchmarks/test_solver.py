"""The solver's calls that a substep repeats: the same bits, from what MuJoCo computed once."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest

from wpray.benchmarks.libero import solver, tasks
from wpray.benchmarks.libero.environment import LiberoEnvironment
from wpray.benchmarks.libero.native import mujoco_address
from wpray.system.library_calls import LibraryCalls
from wpray.types import FloatArray, Trial

pytestmark = pytest.mark.libero

_ADDRESS, _WHOLE = ctypes.c_void_p, ctypes.c_int
_PRODUCT = ctypes.CFUNCTYPE(None, _ADDRESS, _ADDRESS, _ADDRESS, _WHOLE, _WHOLE)
_KINDS: dict[str, Any] = {
    "mju_cholFactor": ctypes.CFUNCTYPE(_WHOLE, _ADDRESS, _WHOLE, ctypes.c_double),
    "mju_cholSolve": ctypes.CFUNCTYPE(None, _ADDRESS, _ADDRESS, _ADDRESS, _WHOLE),
}
_WORDS = solver._memory.view(np.int64)[: solver._WORDS]


class Problem:
    """Constraints (rows) between degrees of freedom (columns), and calls of one kind of functions about them."""

    def __init__(self, seed: int, rows: int, columns: int) -> None:
        random = np.random.default_rng(seed)
        self.jacobian = random.normal(size=(rows, columns)) * (random.random((rows, columns)) < 0.2)
        self.inertia = np.diag(random.uniform(0.1, 1, columns))
        self.motions = random.normal(size=(20, columns))
        self.forces = random.normal(size=(20, rows))
        self.field = np.array([self.jacobian.ctypes.data])

    def answers(self, ours: bool, seed: int = 0) -> list[bytes]:
        """Return answers to 60 calls in some order, most of which repeat another."""
        names = ("mju_mulMatVec", "mju_mulMatTVec", "mju_sqrMatTD", "mju_cholFactor", "mju_cholSolve")
        call = {name: _KINDS.get(name, _PRODUCT)(_address(name, ours)) for name in names}
        random, found = np.random.default_rng(seed), []
        for name, number in zip(random.choice(names, 60), random.integers(0, 20, 60) ** 2 // 20, strict=True):
            found.append(self._call(str(name), call[str(name)], int(number)))
        return found

    def _call(self, name: str, function: Any, number: int) -> bytes:
        rows, columns = self.jacobian.shape
        matrix = self.jacobian.T @ (np.abs(self.forces[number % 3])[:, None] * self.jacobian) + self.inertia
        if name == "mju_cholFactor":
            rank = function(matrix.ctypes.data, columns, 1e-15 if number else 0.5)
            return matrix.tobytes() + bytes([rank])
        if name == "mju_cholSolve":
            factor, result = np.linalg.cholesky(matrix), self.motions[number].copy()
            function(result.ctypes.data, factor.ctypes.data, result.ctypes.data, columns)
            return result.tobytes()
        vector, size = (self.motions[number], rows) if name == "mju_mulMatVec" else (self.forces[number], columns)
        if name == "mju_sqrMatTD":
            vector, size = np.abs(self.forces[number % 3]), columns * columns
        result = np.empty(size)
        function(result.ctypes.data, self.jacobian.ctypes.data, vector.ctypes.data, rows, columns)
        return result.tobytes()


def _address(name: str, ours: bool) -> int:
    return int(solver.routines()[name].address) if ours else mujoco_address(name)


@pytest.fixture
def problem() -> Iterator[Problem]:
    found = Problem(0, 90, 45)
    solver.begin(found.field.ctypes.data)
    yield found
    solver.end()


@pytest.fixture(params=["without zeros", "dense"])
def sums(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let new inputs be computed without the zeros, or by MuJoCo's own functions."""
    _WORDS[solver._DENSE] = request.param == "dense"
    yield
    _WORDS[solver._DENSE] = False


@pytest.mark.usefixtures("sums")
@pytest.mark.parametrize("shape", [(90, 45), (1, 1), (3, 60), (1000, 4), (1001, 12), (80, 61)])
def test_every_call_gives_mujocos_bits_whatever_came_before(shape: tuple[int, int]) -> None:
    for seed in range(5):
        problem = Problem(seed, *shape)
        expected = problem.answers(ours=False, seed=seed)
        solver.begin(problem.field.ctypes.data)
        found = problem.answers(ours=True, seed=seed)
        solver.end()
        assert found == expected
        assert len(set(found)) < len(found)  # some calls repeat others


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("mju_mulMatVec", solver._PRODUCT_IS),
        ("mju_mulMatTVec", solver._TRANSPOSED_IS),
        ("mju_sqrMatTD", solver._SQUARED_IS),
        ("mju_cholFactor", solver._FACTOR_IS),
    ],
)
def test_a_repeated_call_computes_nothing(name: str, place: int, problem: Problem) -> None:
    function = _KINDS.get(name, _PRODUCT)(_address(name, ours=True))
    first = problem._call(name, function, 7)
    assert problem._call(name, function, 7) == first
    solver._memory[place] += 1.0  # what is kept, and nothing else, gives the answer now
    assert problem._call(name, function, 7) != first
    assert problem._call(name, function, 8) == problem._call(name, _KINDS.get(name, _PRODUCT)(mujoco_address(name)), 8)


@pytest.mark.parametrize("name", ["mju_mulMatVec", "mju_mulMatTVec"])
def test_products_that_find_no_room_are_computed(name: str, problem: Problem) -> None:
    ours, own = (_PRODUCT(_address(name, ours)) for ours in (True, False))
    numbers = [*range(20), *range(20)]
    assert len(numbers) > 2 * solver._KEPT
    assert [problem._call(name, ours, number) for number in numbers] == [
        problem._call(name, own, number) for number in numbers
    ]


def test_a_new_jacobian_at_the_same_address_has_new_answers(problem: Problem) -> None:
    before = problem.answers(ours=True)
    problem.jacobian *= 2.0
    solver.begin(problem.field.ctypes.data)
    after = problem.answers(ours=True)
    assert after == problem.answers(ours=False)
    assert after != before


def test_other_threads_get_nothing_that_this_one_keeps(problem: Problem) -> None:
    usual = problem.answers(ours=True)
    solver._memory[solver._PRODUCT_IS : solver._TRANSPOSED_OF] += 1.0
    assert problem.answers(ours=True) != usual
    found: list[list[bytes]] = []
    thread = threading.Thread(target=lambda: found.append(problem.answers(ours=True)))
    thread.start()
    thread.join()
    assert found == [usual]


@pytest.fixture(scope="module")
def environment() -> Iterator[LiberoEnvironment]:
    environment, task = LiberoEnvironment(), tasks.list_tasks("libero_spatial")[5]
    environment.load(task)
    environment.reset(Trial(task, 0, 0))
    yield environment
    environment.close()


def _moved(environment: LiberoEnvironment) -> tuple[list[FloatArray], FloatArray]:
    """Return states, and the words after the last step, of an episode that pushes objects."""
    trial = Trial(tasks.list_tasks("libero_spatial")[5], 0, 0)
    environment.reset(trial)
    states: list[FloatArray] = []
    for action in np.clip(np.cumsum(np.random.default_rng(2).uniform(-0.3, 0.3, (40, 7)), axis=0), -1, 1):
        _WORDS[:] = 0
        environment.step(action)
        data = environment._loaded().data
        states += [data.qpos.copy(), data.qvel.copy(), data.qacc_warmstart.copy(), data.efc_force.copy()]
    return states, _WORDS.copy()


def test_an_episode_has_the_bits_that_it_has_without(
    environment: LiberoEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, words = _moved(environment)
    assert words[solver._SQUARED]
    assert words[solver._FACTORED] == environment._loaded().model.nv
    assert words[solver._PRODUCTS] > 0
    assert words[solver._TRANSPOSED] > 0
    assert words[solver._THREAD] == 0  # stock code, and a reset, reach MuJoCo's functions again
    monkeypatch.setattr(solver, "usable", lambda: False)
    usual, words = _moved(environment)
    assert not words.any()
    assert [state.tobytes() for state in ours] == [state.tobytes() for state in usual]


def test_a_changed_jacobian_ends_the_solving(environment: LiberoEnvironment) -> None:
    scene = environment._loaded()
    with solver.Constraints(scene.data).solving() as field:
        solver.begin(field)
        assert _WORDS[solver._THREAD] != 0
        mujoco.mj_forward(scene.model, scene.data)
        assert _WORDS[solver._THREAD] == 0


def test_a_simulation_that_mujoco_resets_has_the_bits_that_it_has_without(
    environment: LiberoEnvironment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # where MuJoCo writes its warning
    found = []
    for usable in (solver.usable, lambda: False):
        monkeypatch.setattr(solver, "usable", usable)
        environment.reset(Trial(tasks.list_tasks("libero_spatial")[5], 0, 0))
        environment.step(np.zeros(7))
        data = environment._loaded().data
        data.qfrc_applied[0] = np.nan
        environment._stepper._osc.run(3)
        resets = data.warning[mujoco.mjtWarning.mjWARN_BADQACC].number
        found.append((resets, data.qpos.tobytes(), data.qvel.tobytes(), data.qacc_warmstart.tobytes()))
    assert found[0] == found[1]
    assert found[0][0] == 1


def test_a_thread_that_comes_second_solves_as_usual(environment: LiberoEnvironment) -> None:
    constraints = solver.Constraints(environment._loaded().data)
    with constraints.solving() as first, constraints.solving() as second:
        assert first != 0
        assert second == 0
    with constraints.solving() as again:
        assert again == first


def test_an_error_in_a_substep_ends_the_solving(environment: LiberoEnvironment) -> None:
    constraints = solver.Constraints(environment._loaded().data)
    with pytest.raises(ZeroDivisionError), constraints.solving() as field:
        solver.begin(field)
        raise ZeroDivisionError
    assert _WORDS[solver._THREAD] == 0


def test_another_mujoco_keeps_its_own_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = LibraryCalls(mujoco_address("mj_step"))
    before = {name: calls[name] for name in solver.routines()}
    monkeypatch.setattr(mujoco, "__version__", "3.4.0")
    assert not solver.usable.__wrapped__()
    assert before == {name: calls[name] for name in solver.routines()}
