"""Groups of settings: environment, Ray, batches, videos, retries, latency, and when a run stops."""

from __future__ import annotations

import re
from typing import Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from wpray.config.value_types import ActorCount, Auto, PolicyArgs, StepLimits, without_booleans

_MOST_OF_A_RESOURCE = 1e6  # on one node


class SettingsGroup(BaseModel):
    """Settings that refuse unknown keys, and `true` for a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_no_booleans(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[info.field_name or ""].annotation
        if (
            kind == PolicyArgs
            or bool in get_args(kind)
            or (isinstance(kind, type) and issubclass(kind, bool | BaseModel))
        ):
            return value
        return without_booleans(value)


class EnvConfig(SettingsGroup):
    """Settings of the simulated environment."""

    renderer: Literal["auto", "osmesa", "egl"] = Field(
        "auto",
        description="OpenGL library that renders the cameras; auto: EGL where a GPU driver is present, else osmesa. "
        "EGL takes a GPU that no policy actor owns if the node has one, else shares a policy's",
    )
    render: Literal["auto", "local", "remote"] = Field(
        "auto",
        description="where the policy's pictures are drawn: by each environment (local), or by render actors, which "
        "get the scene's state (remote: environments then need no OpenGL and no GPU); the pictures are the same; "
        "auto: remote on a cluster where EGL draws and policy actors have GPUs",
    )
    render_actors: ActorCount | Auto = Field("auto", description="render actors; auto: one for each GPU of the policy")
    protocol: Literal["wpray", "serial"] = Field(
        "wpray",
        description="wpray: every trial gets the scene of a fresh, freshly seeded process; "
        "serial: the order-dependent scenes of a stock serial evaluator",
    )
    memory_gb: PositiveFloat = Field(2.1, le=1_000_000, description="memory reserved for each env actor, GiB")
    max_steps: StepLimits | None = Field(
        None,
        description="control steps after the wait steps, of every suite, or libero_goal:300,libero_10:600; "
        "default: the suite's own limit",
    )
    instruction: Literal["auto", "file_name", "bddl"] = Field(
        "auto",
        description="source of the instruction: the words of the task's file name, or its BDDL's (:language); "
        "auto: file_name for LIBERO's own suites, as their training data has it, bddl for others, such as _lan, _task; "
        "of LIBERO-plus bddl for rewritten instructions, and the perturbed task's own words for all others",
    )


class RayConfig(SettingsGroup):
    """Place and size of the run."""

    address: str | None = Field(
        None, description="none: a local Ray in this process; auto or ray://HOST:10001: join a cluster"
    )
    submit: str | None = Field(
        None,
        description="http://HEAD:8265: run the driver itself on the cluster (Ray Jobs); paths in the configuration "
        "are then the cluster's, relative ones from the home directory there",
    )
    follow: bool = Field(True, description="with ray.submit: stream the job's log, and return its exit code")
    fetch: bool = Field(
        True,
        description="with ray.follow: bring the result folder back at the end, into a relative output_dir or runs/",
    )
    job: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_-]{1,100}$",
        description="with ray.submit: submit nothing, follow and fetch this job",
    )
    num_env_actors: ActorCount | Auto = Field(
        "auto",
        description="environments at once; auto: as many as the CPUs and memory of the present nodes hold, and on one "
        "machine more where they wait for a GPU or a server, corrected while the run goes on; a number makes a "
        "cluster that autoscales grow to it",
    )
    num_policy_actors: ActorCount | Auto = Field("auto", description="policy replicas; auto: one, or one for each GPU")
    env_cpus: float = Field(1.0, ge=0.0001, le=1e6, description="CPUs reserved for each env actor")
    env_resources: dict[str, float] = Field(
        default_factory=dict,
        description="resources that each env actor needs, such as {env_node: 1} or {GPU: 0.1}",
    )
    policy_resources: dict[str, float] = Field(
        default_factory=dict, description="resources that each policy actor needs; GPU: instead of the policy's own"
    )

    @field_validator("env_resources", "policy_resources")
    @classmethod
    def _rays_own_have_fields(cls, resources: dict[str, float]) -> dict[str, float]:
        for name, share in resources.items():
            if name in ("CPU", "memory", "object_store_memory"):
                raise ValueError(f"{name} is not for here: use ray.env_cpus and env.memory_gb")
            if share <= 0:
                raise ValueError(f"{name}: {share:g} must be more than 0")
            if not name.strip() or share > _MOST_OF_A_RESOURCE:
                raise ValueError(f"{name or 'a resource'}: {share:g} is no share of a node's resource that has a name")
        return resources

    @field_validator("submit")
    @classmethod
    def _submit_is_a_dashboard(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^/\s?#]+/?", value):
            raise ValueError("must be the dashboard's address, such as http://HEAD:8265")
        return value

    @model_validator(mode="after")
    def _one_way_to_the_cluster(self) -> RayConfig:
        if self.submit is not None and self.address not in (None, "auto"):
            raise ValueError("submit runs the driver on the cluster itself: leave address out")
        if self.job is not None and self.submit is None:
            raise ValueError("job needs submit, the address of the dashboard that knows it")
        return self


class BatchingConfig(SettingsGroup):
    """Batches of the policy actor."""

    max_batch_size: PositiveInt = Field(
        32, le=256, description="most requests answered together; never more than num_parallel"
    )
    max_wait_ms: float = Field(2.0, ge=0, le=10_000, description="longest wait for a batch to fill, milliseconds")
    deterministic: bool = Field(True, description="answers do not depend on a batch's size and composition, to the bit")


class VideoConfig(SettingsGroup):
    """Videos, rendered from recorded states after the episodes."""

    mode: Literal["none", "failures", "sample", "all"] = Field(
        "sample", description="sample: the first success and the first failure of each task"
    )
    fps: PositiveInt = Field(10, le=120, description="frames per second of the file")
    every: PositiveInt = Field(2, description="keep every n-th control step")
    max_count: int = Field(20, ge=0, description="most videos of a run")
    max_s: PositiveFloat | Auto = Field(
        "auto",
        description="seconds that rendering them may take, failures first; auto: for a sample half of the evaluation's "
        "time, and at least 20, else as long as it takes",
    )
    overlay: bool = Field(False, description="write step, waypoint and outcome in the corner")


class RetryConfig(SettingsGroup):
    """Retries and limits for failures."""

    max_attempts: PositiveInt = Field(3, le=100, description="attempts of a trial before it becomes an error row")
    stall_s: float = Field(
        120.0,
        ge=1,
        description="seconds without a step or reply after which an actor is hung; far more than either takes",
    )
    max_error_share: float = Field(
        0.05, ge=0, le=1, description="stop the run at this share of error rows (and at least 3)"
    )


class LatencyConfig(SettingsGroup):
    """Inference time that passes in simulated steps, as it would on a robot."""

    extra_ms: float = Field(
        0.0,
        ge=0,
        le=60_000,
        description="time that passes between each observation and the execution of its answer, milliseconds, rounded "
        "up to whole control steps; 0: none, the simulation waits for the policy",
    )
    mode: Literal["hold", "freeze"] = Field(
        "hold",
        description="meanwhile, hold: what is left of a chunk in hand is executed, then the robot stands still; "
        "freeze: it stands still at once",
    )


class StopWhenConfig(SettingsGroup):
    """Optional early stop, decided on the trials that every task has run; tasks then run in rounds of few trials."""

    half_width: float | None = Field(
        None, gt=0, lt=1, description="stop when the overall 95% interval's half-width is under this"
    )
    reference_rate: float | None = Field(None, gt=0, lt=1, description="sequential test against this success rate")
    difference: float = Field(0.1, gt=0, lt=1, description="smallest difference from reference_rate that matters")
    alpha: float = Field(0.05, gt=0, lt=0.5, description="rate of falsely finding a difference")
    beta: float = Field(0.05, gt=0, lt=0.5, description="rate of missing that difference")

    @model_validator(mode="after")
    def _a_rate_can_differ_so_much(self) -> StopWhenConfig:
        reference = self.reference_rate
        most = 1.0 if reference is None else max(reference, 1 - reference)
        if self.difference >= most:
            raise ValueError(f"difference: no rate is {self.difference:g} away from {reference:g}; give under {most:g}")
        return self
