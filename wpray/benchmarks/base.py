"""Benchmarks and their environments, as the rest of wpray uses them. LIBERO and the fake one come with it.

`wpray.testing.check_benchmark` checks that an implementation keeps these promises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from wpray.benchmarks.names import normalized
from wpray.errors import BadInputError
from wpray.system.packages import PackageSource, files_below, source_of

if TYPE_CHECKING:  # numpy is imported by those who work with arrays, after their process has set its variables
    from wpray.checks import CheckResult
    from wpray.types import (
        ActionSpec,
        DrawRequest,
        FloatArray,
        ImageArray,
        Observation,
        ObservationSpec,
        SceneState,
        State,
        StateColumn,
        Step,
        Task,
        TaskKey,
        Trial,
    )

InstructionSource = Literal["file_name", "base_file_name", "bddl"]  # base: of the task that a variant perturbs
InstructionSetting = Literal["auto"] | InstructionSource
ResetProtocol = Literal["wpray", "serial"]


class Environment(Protocol):
    """One simulated robot cell in one process. Not thread-safe.

    Order of calls: `load` once per task (slow: compiles the scene), then per trial `reset` and `step`s.
    The outcome of a trial depends on the trial alone, not on what the process ran before.
    """

    render_s: float  # seconds spent rendering since the last reset

    def load(self, task: Task) -> None:
        """Make `task` the current one; return at once if it already is."""

    def reset(self, trial: Trial) -> None:
        """Bring the scene to the start of `trial` (seeded reset, then its initial state); take no step."""

    def step(self, action: FloatArray) -> Step:
        """Execute one control step of `action`, as `action_spec` says, and return what it led to. Never render.

        `Step.terminated`: the task is solved. `Step.truncated`: the episode is over and the task is not solved.
        """

    def observe(self, spec: ObservationSpec) -> Observation:
        """Return what a policy sees now, after `reset` or the last `step`. Render the cameras of `spec` and no others.

        `spec` names cameras and proprio fields that the benchmark's own specification has.
        """

    def state(self) -> State:
        """Return copies of the state after the last step: a vector for each of the benchmark's `state_columns`."""

    def scene(self) -> SceneState | None:
        """Return what the last reset decided and no step changes; None if rendering needs states alone."""

    def render(self, state: State, scene: SceneState | None, *, camera: str, height: int, width: int) -> ImageArray:
        """Return (height, width, 3) uint8, upright: the picture of a recorded state, as it was when it was recorded."""

    def close(self) -> None:
        """Free the simulator."""


class Drawer(Protocol):
    """Process that draws for the environments of many others, from models and poses that they send.

    Not thread-safe but for `prepare`: one thread makes it and calls it. A process has one at most.
    """

    def knows(self, model: str) -> bool:
        """Return True if the model of this digest was learned and is not forgotten."""

    def prepare(self, model: str, data: bytes) -> None:
        """Do what is slow about learning a model. Any thread may call it, while another draws.

        It may be called without a `learn` that follows, and not before each. What fails here is raised by `learn`.
        """

    def learn(self, model: str, data: bytes) -> None:
        """Keep a compiled model; forget those that were drawn longest ago if there are too many.

        Raises BadInputError if `data` has another digest than `model`.
        """

    def draw(self, requests: Sequence[DrawRequest]) -> list[dict[str, ImageArray]]:
        """Return the pictures of each request by role, pixel-identical to those of `Environment.observe`.

        Forgets no model. Raises KeyError if it does not know a request's model: `learn` it first.
        """

    def close(self) -> None:
        """Free all models and what they were drawn with."""


class DrawClient(Protocol):
    """Way to a drawer, which hides the transport, retries and restarts."""

    def draw(self, request: DrawRequest, model_data: Callable[[], bytes]) -> dict[str, ImageArray]:
        """Return the pictures by role.

        `model_data` returns the bytes of the request's model. It is called only if the drawer does not know the model,
        which may have been replaced by a fresh one since the last request.
        """


class RemotelyDrawn(Protocol):
    """Further method of an environment whose benchmark `draws_remotely`."""

    def draw_with(self, client: DrawClient) -> None:
        """Let `client` draw what `observe` shows; `render` stays local. Called once, before the first `load`."""


@dataclass(frozen=True, slots=True)
class SuiteSize:
    """Size of a suite, as far as it is known without the simulator."""

    tasks: int
    max_steps: int  # control steps after the wait steps


@dataclass(frozen=True, slots=True)
class Grades:
    """Difficulty of tasks, for reports; no outcome depends on it."""

    source: str  # of the levels, for people
    levels: Mapping[TaskKey, str]  # tasks without one are left out


@dataclass(frozen=True, slots=True)
class DecisivePackage:
    """Installed files that decide outcomes: machines and sessions that differ in them are not mixed."""

    name: str  # in results
    source: PackageSource
    files: Iterable[tuple[str, str]]  # name, path
    others: tuple[str, ...] = ()  # distributions that hold some of the files, besides the package's own


@dataclass(frozen=True, slots=True)
class RunRequest:
    """Settings of a run that a benchmark's checks read."""

    suites: tuple[str, ...]
    task_ids: Callable[[str, Iterable[int]], list[int] | None]  # selects from the ids that a suite has; None: all
    num_trials: int  # of each task
    init_states_file: str | None
    max_steps_of: Callable[[str], int | None]  # of a suite; None: its own limit
    instruction_of: Callable[[str], InstructionSource]


@dataclass(frozen=True, slots=True)
class BenchmarkCheck:
    """One of the doctor's checks."""

    name: str
    check: Callable[[RunRequest], list[CheckResult]]  # an empty list: it does not apply
    needs: frozenset[str] = frozenset()  # checks without which this one can only fail for the same reason
    quick: bool = False  # takes a moment, so that every run does it, too


class Benchmark(Protocol):
    """Suites of tasks and their simulator. Inherit from it: only `tasks` and `make_environment` have no default.

    Every process of a run makes its own, without arguments. The module is imported before a run starts, to read its
    settings, so it must not import the simulator: import that where an environment is made.
    """

    cameras: ClassVar[tuple[str, ...]] = ()  # names that Environment.render takes
    video_cameras: ClassVar[tuple[str, ...]] = ()  # those of observation_spec, side by side in videos
    robot: ClassVar[str] = "unknown"  # its name in exported data sets
    turns_pictures: ClassVar[bool] = False  # by 180 degrees, as its data sets have them
    control_hz: ClassVar[float | None] = None  # control steps of a second; None: not known, so no latency is simulated
    uses_opengl: ClassVar[bool] = False  # rendered by EGL or OSMesa, as MuJoCo does: wpray selects the device
    draws_remotely: ClassVar[bool] = False  # make_drawer returns one, and environments are RemotelyDrawn
    packages: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # decisive ones: name -> their distributions
    other_names: ClassVar[Mapping[str, str]] = {}  # of suites in data sets' names -> the suite
    takes_own_states: ClassVar[bool] = False  # resets to `Trial.own_state` where a trial has one (init_states_file)
    solved_by: ClassVar[tuple[str, str] | None] = None  # suite and policy that solves its first task, for the doctor
    stand_in: ClassVar[bool] = False  # a fast fake for tests, whose times say nothing about other benchmarks

    def tasks(self, suite: str, max_steps: int | None, instruction: InstructionSource) -> tuple[Task, ...]:
        """Return the suite's tasks in order, with the given limit of steps in place of their own.

        Raises BadInputError for a suite that does not exist, naming one that does.
        """

    def make_environment(self, suite: str, protocol: ResetProtocol) -> Environment:
        """Return an environment for the tasks of `suite`."""

    def make_drawer(self) -> Drawer | None:
        """Return a drawer for environments of any suite in other processes; None: environments draw by themselves."""
        return None

    def canonical(self, suite: str) -> str:
        """Return the name under which results list the suite that people call `suite` (lower case, words with _)."""
        return suite

    def expanded(self, names: Sequence[str]) -> list[str]:
        """Return the canonical names of suites as people list them, each once; a name may stand for several suites."""
        return list(dict.fromkeys(self.canonical(normalized(name)) for name in names))

    def group_name(self, suites: Sequence[str]) -> str:
        """Return one name for several suites."""
        return "-".join(suites)

    def variation_of(self, suite: str) -> tuple[str, str] | None:
        """Return (base suite, axis) of a suite that perturbs another; None if it does not."""
        return None

    def grades(self, tasks: Sequence[Task]) -> Grades | None:
        """Return the difficulty of tasks; None if the benchmark grades none."""
        return None

    def fits_data_set(self, suite: str, data_set: str) -> bool:
        """Return True unless a data set's name (lower case, words with _) says that it is of other suites' tasks."""
        return True

    def instruction_source(self, suite: str, setting: InstructionSetting) -> InstructionSource:
        """Return where the instructions of the suite's tasks come from, as `env.instruction` says."""
        if setting == "bddl":
            raise BadInputError(f"env.instruction: bddl: task_suite {suite} has no BDDL files; use auto")
        return "file_name"

    def observation_spec(self, suite: str) -> ObservationSpec:
        """Return what environments can show: cameras by role with their own size, and proprio fields.

        A policy may ask for any of them, and its cameras in another size.
        """
        from wpray.types import ObservationSpec

        return ObservationSpec(privileged=False)

    def state_columns(self) -> tuple[StateColumn, ...]:
        """Return the columns of trajectories, in order: what `Environment.state` returns after every control step."""
        return ()

    def action_spec(self, suite: str) -> ActionSpec:
        """Return how many numbers an action has, what they mean, and which stand still."""
        from wpray.types import EEF_ACTION

        return EEF_ACTION

    def env_memory(self, configured: int) -> int:
        """Return the bytes to reserve for an env actor; `configured` are those of `env.memory_gb`."""
        return configured

    def size(self, suite: str) -> SuiteSize:
        """Return an estimate on the high side of how large the suite is, without the simulator."""
        return SuiteSize(tasks=100, max_steps=1000)

    def checks(self) -> tuple[BenchmarkCheck, ...]:
        """Return the doctor's checks of this benchmark, in order."""
        return ()

    def decisive_packages(self, suites: Sequence[str]) -> Iterator[DecisivePackage]:
        """Yield the packages whose files decide outcomes of `suites`; by default the one that defines this class."""
        package = type(self).__module__.split(".")[0]
        yield from whole_package(package, packages_distributions().get(package, ()))


def whole_package(name: str, distributions: Sequence[str]) -> Iterator[DecisivePackage]:
    """Yield the package with all of its files, if it is installed; `distributions` may provide it."""
    source = source_of(name, tuple(distributions))
    if source is not None:
        yield DecisivePackage(name, source, files_below(source.folder))
