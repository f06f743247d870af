"""Configuration of a run: YAML, then command line, validated before anything heavy is imported.

Existing configs keep their flat keys and meaning; new settings are grouped. Of other packages, this module imports
pydantic only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal, get_args

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from wpray.benchmarks.base import Benchmark, InstructionSource
from wpray.benchmarks.factory import BENCHMARKS, DEFAULT_SUITE, benchmark_name, benchmark_of
from wpray.benchmarks.names import is_or_varies
from wpray.config.groups import (
    BatchingConfig,
    EnvConfig,
    LatencyConfig,
    RayConfig,
    RetryConfig,
    SettingsGroup,
    StopWhenConfig,
    VideoConfig,
)
from wpray.config.value_types import (
    FILE_NAME,
    ActorCount,
    Auto,
    BenchmarkName,
    FilePath,
    OutputPath,
    PolicyArgs,
    SuiteNames,
    TasksOfSuites,
    canonical_name,
)
from wpray.registry import POLICIES


class Config(SettingsGroup):
    """Every setting of an evaluation run."""

    policy: str = Field(
        "",
        description=f"{' | '.join(POLICIES.built_in)}, an installed one's name, or PACKAGE.MODULE:CLASS; "
        "default: waypoint_vla if checkpoints are named",
    )
    policy_args: PolicyArgs = Field(
        default_factory=dict,
        description="the policy's own settings, each also as --policy_args.NAME VALUE; --policy NAME --help lists them",
    )
    robot_type: BenchmarkName = Field(
        next(iter(BENCHMARKS.built_in)), description="a benchmark's name in training YAML files; benchmark decides"
    )
    benchmark: str = Field(
        "auto",
        min_length=1,
        max_length=300,
        description=f"{' | '.join(BENCHMARKS.built_in)}, an installed one's name, or PACKAGE.MODULE:CLASS; auto: the "
        "one whose name begins the suite's",
    )
    task_suite: SuiteNames = Field(
        DEFAULT_SUITE,
        description="suite of the benchmark, or several; LIBERO-Object, libero_long (libero_10), libero_goal_no_noops "
        "are understood; libero_all is libero_spatial, libero_object, libero_goal and libero_10; libero_pro is these, "
        "each perturbed along lan, object, swap and task, and libero_pro:lan,swap along some of them; "
        "libero_plus:camera,robot,language,noise are the variants of LIBERO-plus in these categories",
    )
    tasks: TasksOfSuites | None = Field(
        None,
        min_length=1,
        description="task ids, such as 0,3 or 0-4, of every suite, or libero_goal:0-4,libero_10:3; default: all",
    )
    num_trials_per_task: PositiveInt = Field(1, le=100_000, description="trials of each task, from its initial states")
    task_start: int = Field(0, ge=0, le=100_000, description="first task id of the suite, in place of tasks")
    task_end: PositiveInt | None = Field(None, description="task id before which it ends; default: the suite's end")
    trial_start: int = Field(
        0, ge=0, le=100_000, description="first trial of each task; num_trials_per_task stays the end of them"
    )
    stop_after_successes: PositiveInt | None = Field(
        None, le=100_000, description="end a task at its n-th success; the trials that run are those of a serial run"
    )
    init_states_file: FilePath | None = Field(
        None,
        description="initial states in place of the suite's: NPZ, pickle or torch file, task name -> (trials, numbers "
        "of a state); nothing in it is executed, and a task with fewer states than trials has fewer trials",
    )
    num_steps_wait: int = Field(
        10, ge=0, le=1000, description="steps that stand still at the start, while objects settle"
    )
    num_parallel: ActorCount | None = Field(None, description="environments at once (as ray.num_env_actors)")
    seed: int = Field(0, ge=0, lt=2**32, description="seeds every trial, with its own key")
    output_dir: OutputPath | None = Field(
        None,
        description="result folder, or URL such as s3://BUCKET/PATH; default: a new one under runs/, or the unfinished "
        "one of the same config",
    )
    resume: Literal["never", "auto", "only"] = Field(
        "auto", description="go on with a folder's finished trials: if it has any (auto), not at all, or nothing else"
    )
    record: Literal["full", "light", "none"] = Field(
        "full", description="trajectories: with the simulator's full state, the robot's alone, or none"
    )
    video_out_path: OutputPath | None = Field(None, description="folder of the videos; default: OUTPUT/videos")
    track: str | None = Field(
        None,
        min_length=1,
        max_length=300,
        description="send rates, table, report and some videos to wandb | trackio | mlflow | tensorboard, an installed "
        "tracker, or PACKAGE.MODULE:CLASS",
    )
    track_project: str = Field(
        "wpray", min_length=1, max_length=100, description="project of the tracker (MLflow: experiment)"
    )

    joint_checkpoint: FilePath | None = Field(
        None, description="VLM and action expert in one file that share a backbone, instead of the pair"
    )
    vlm_checkpoint: FilePath | None = Field(None, description="waypoint VLM: model directory or training step")
    ae_checkpoint: FilePath | None = Field(None, description="action expert: model directory or training step")
    checkpoint_file: Literal["model", "model_merged"] = Field(
        "model", description="which .safetensors file of a checkpoint's directory counts if both are there"
    )
    token_layout: Literal["auto", "bins256", "bins300"] = Field(
        "auto",
        description="the planner's tokens: bins256 (8-D proprio) or bins300 (6-D proprio and a gripper token); "
        "auto: what the checkpoints and the statistics agree on",
    )
    planner_use_block_embed: bool | None = Field(
        None, description="the block planner embeds its waypoints' numbers; the tensors decide, and must agree"
    )
    lora_enabled: bool = Field(False, description="read the LoRA adapter in joint_checkpoint, beside its base model")
    pretrained_weight_path: FilePath | None = Field(None, description="the base model of a LoRA adapter")
    lora_rank: PositiveInt = Field(16, le=4096, description="rank of the adapter; checked against its file")
    lora_alpha: PositiveFloat | None = Field(
        None, description="scale of the adapter times its rank: needed with lora_enabled, because no tensor shows it"
    )
    lora_use_rslora: bool = Field(False, description="the scale is lora_alpha / sqrt(lora_rank)")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="of training: without effect here")
    lora_apply_to: Literal["all", "backbone_only", "expert_only"] = Field("all", description="what was adapted")
    vision_encoder_mode: Literal["freeze", "lora", "full"] | None = Field(
        None, description="how the image encoder was trained; default: freeze, with train_vision_encoder full"
    )
    train_vision_encoder: bool = Field(False, description="older name of vision_encoder_mode: full")
    lora_modules_to_skip: list[str] | None = Field(
        None, description="parts of the names of layers that were not adapted, instead of the default ones"
    )
    lora_trainable_modules: list[str] | None = Field(
        None, description="parts of the names of tensors that were trained in full, instead of the default ones"
    )
    lora_inference_slim: bool = Field(True, description="an active adapter's B takes up the scale once")
    runtime_merge: bool = Field(
        False, description="add the adapter to the weights (merged); false: compute it beside them (active)"
    )
    use_ema: bool = Field(False, description="the adapter's averaged weights, lora_ema.safetensors")
    allow_stale_ema_forensics: bool = Field(
        False, description="averaged weights even if they may be mostly those of the warm-up"
    )
    dataset_statistics_path: FilePath | None = Field(
        None,
        description="dataset_statistics.json of the training data, openpi's norm_stats.json or LeRobot's stats.json",
    )
    dataset_statistics_key: str | None = Field(
        None, min_length=1, description="data set in that file; default: the suite's own, else the only one"
    )
    tokenizer_path: FilePath | None = Field(
        None, description="PaliGemma's tokenizer.model; default: found beside the checkpoint"
    )
    model_action_dim: PositiveInt = Field(32, le=4096, description="action width of the action expert")
    model_proprio_dim: PositiveInt = Field(32, le=4096, description="waypoint width of the action expert")
    horizon_steps: PositiveInt = Field(32, le=4096, description="actions of one segment's chunk")
    num_waypoints: PositiveInt = Field(7, le=64, description="waypoints of one plan")
    max_token_len: PositiveInt = Field(256, le=8192, description="longest VLM prompt, tokens")
    vlm_max_token_len: PositiveInt | None = Field(
        None, le=8192, description="another name of max_token_len, and counts before it"
    )
    ae_max_token_len: int = Field(
        64, ge=64, le=64, description="longest action expert prompt, tokens: no other model is known"
    )
    paligemma_variant: str = Field("gemma_2b", description="VLM size; checked against the checkpoint")
    action_expert_variant: str = Field("gemma_300m", description="expert size; checked against the checkpoint")
    precision: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="compute precision of the action expert, or of a joint model"
    )
    vlm_precision: Literal["float32", "bfloat16"] = Field("bfloat16", description="VLM's compute precision (of a pair)")
    lm_head_precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="precision of the planner's scores: training branches differ, and some bfloat16 plans with them; "
        "auto: float32, for a block planner bfloat16",
    )
    max_segments_per_replan: int = Field(
        0, ge=0, le=1000, description="waypoints of a plan that are followed before the next plan; 0: all"
    )
    use_actual_proprio: bool = Field(
        False, description="segments after a plan's first start where the robot is (as segment_start_from: actual)"
    )
    segment_start_from: Literal["predicted", "actual"] = Field(
        "predicted", description="where a plan's later segments start: at the waypoint just aimed at, or at the robot"
    )
    strict_step_budget: bool = Field(
        True, description="no step beyond the limit; false: the current plan is followed to its end"
    )
    stop_on_d0: bool = Field(
        False, description="a zero duration ends the episode; as a plan's first one only if two plans do so in a row"
    )
    planner_mode: Literal["auto", "token_ar", "block_ar"] = Field(
        "auto",
        description="the planner that the checkpoint must hold: a token (token_ar) or a waypoint (block_ar) at a time; "
        "auto: what it holds",
    )
    temperature: float = Field(
        0.0, ge=0, le=100, description="a plan's tokens are drawn from softmax(scores / temperature); 0: the best ones"
    )
    forbid_terminal_first_waypoint: bool = Field(
        False, description="the duration of a plan's first waypoint is never 0, which would execute nothing"
    )
    replan_on_deviation: bool = Field(
        False, description="plan again after a segment that ends too far from its waypoint (deviation_threshold)"
    )
    deviation_threshold: float = Field(
        0.15,
        ge=0,
        le=1000,
        description="largest distance between waypoint and robot, in normalized units, gripper apart",
    )
    deviation_metric: Literal["l2", "linf"] = Field(
        "l2", description="that distance over position and rotation: l2 (Euclidean) or linf (of the worst dimension)"
    )
    center_crop: bool = Field(False, description="show the policy the images' middle, resized")
    center_crop_scale: float | None = Field(None, gt=0, le=1, description="share of the images' area that it sees")
    noise: Literal["keyed", "reference"] = Field(
        "keyed",
        description="the flow's noise: a function of the trial's key, or drawn as the reference evaluators do, "
        "seeded by eval_seed for each episode",
    )
    eval_seed: int | None = Field(
        None, ge=0, lt=2**31, description="seeds the flow's noise alone; default: seed does, with noise: keyed"
    )
    norm_type: Literal["q99", "normal"] = Field("q99", description="normalization of proprio and actions")
    torch_compile: bool = Field(True, description="capture the models' work as CUDA graphs (false: eager)")

    env: EnvConfig = EnvConfig()
    ray: RayConfig = RayConfig()
    batching: BatchingConfig = BatchingConfig()
    video: VideoConfig = VideoConfig()
    retry: RetryConfig = RetryConfig()
    latency: LatencyConfig = LatencyConfig()
    stop_when: StopWhenConfig = StopWhenConfig()

    @model_validator(mode="before")
    @classmethod
    def _name_policy(cls, data: Any) -> Any:
        """Without `policy`, the first one whose own settings are given is meant, else the first of all."""
        if not isinstance(data, dict):
            return data
        given = data.get("policy")
        if isinstance(given, str) and not given.strip():
            raise ValueError(f"policy: is empty; name one ({' | '.join(POLICIES.built_in)}) or leave the key out")
        if given is None:
            meant = [name for name in POLICIES.flat if POLICIES.flat_settings(name).are_given(data)]
            return {**data, "policy": next(iter([*meant, *POLICIES.built_in]))}
        return data

    @model_validator(mode="after")
    def _flat_settings_fit_their_policy(self) -> Config:
        for name in POLICIES.flat:
            POLICIES.flat_settings(name).check(self, chosen=self.policy == name)
        return self

    @field_validator("env")
    @classmethod
    def _limits_have_the_suites_own_names(cls, env: EnvConfig, info: ValidationInfo) -> EnvConfig:
        if not isinstance(env.max_steps, dict):
            return env
        return env.model_copy(
            update={"max_steps": {canonical_name(name, info): steps for name, steps in env.max_steps.items()}}
        )

    @model_validator(mode="after")
    def _limits_are_of_the_suites(self) -> Config:
        limits = self.env.max_steps
        for name in limits if isinstance(limits, dict) else ():
            if name not in self.suites:
                raise ValueError(f"env.max_steps: names suite {name}, which task_suite does not; add it there")
        return self

    @model_validator(mode="after")
    def _tasks_are_of_the_suites(self) -> Config:
        if isinstance(self.tasks, dict):
            for name, ids in self.tasks.items():
                if name not in self.suites:
                    raise ValueError(f"tasks: names suite {name}, which task_suite does not; add it there")
                if not ids:
                    raise ValueError(f"tasks: names no task of {name}; leave the suite out for all")
        if len(self.suites) > 1 and self.init_states_file is not None:
            raise ValueError("init_states_file: holds one suite's states; evaluate its suite by itself")
        names = sorted({benchmark_name(suite, self.benchmark) for suite in self.suites})
        if len(names) > 1:
            raise ValueError(f"task_suite: names suites of {' and '.join(names)}; evaluate each benchmark by itself")
        return self

    @model_validator(mode="after")
    def _one_number_of_environments(self) -> Config:
        both = self.num_parallel is not None and self.ray.num_env_actors != "auto"
        if both and self.num_parallel != self.ray.num_env_actors:
            raise ValueError("num_parallel and ray.num_env_actors mean the same: give one of them")
        return self

    @model_validator(mode="after")
    def _options_fit_together(self) -> Config:
        if self.center_crop and self.center_crop_scale is None:
            raise ValueError(
                "center_crop needs center_crop_scale, such as 0.9: training branches disagree on a default"
            )
        predicted = "segment_start_from" in self.model_fields_set and self.segment_start_from == "predicted"
        if self.use_actual_proprio and predicted:
            raise ValueError("use_actual_proprio means segment_start_from: actual, not predicted: give one of them")
        return self

    @model_validator(mode="after")
    def _latency_passes_in_steps(self) -> Config:
        if self.latency.extra_ms and self.load_benchmark().control_hz is None:
            name = benchmark_name(self.suites[0], self.benchmark)
            raise ValueError(
                f"latency.extra_ms: the benchmark {name} does not say how many control steps a second has; "
                "give its class a control_hz, or leave latency out"
            )
        return self

    @model_validator(mode="after")
    def _others_can_draw(self) -> Config:
        if self.env.render == "remote" and not self.load_benchmark().draws_remotely:
            name = benchmark_name(self.suites[0], self.benchmark)
            raise ValueError(
                f"env.render: remote: the benchmark {name} is drawn by its environments only; leave env.render out, "
                "or give its class make_drawer"
            )
        return self

    @model_validator(mode="after")
    def _one_choice_of_trials(self) -> Config:
        if self.tasks is not None and (self.task_start or self.task_end is not None):
            raise ValueError("tasks and task_start or task_end choose the same: give one of them")
        if self.task_end is not None and self.task_start >= self.task_end:
            raise ValueError(f"task_start {self.task_start} leaves no task before task_end {self.task_end}")
        if self.stop_after_successes is not None and self.stop_when != StopWhenConfig():
            raise ValueError("stop_after_successes and stop_when exclude each other: tasks would end unlike each other")
        return self

    @property
    def starts_from_actual(self) -> bool:
        """True if later segments of a plan start where the robot is, under either name."""
        return self.use_actual_proprio or self.segment_start_from == "actual"

    @property
    def latency_steps(self) -> int:
        """Control steps in which `latency.extra_ms` pass."""
        hz = self.load_benchmark().control_hz if self.latency.extra_ms else None
        return 0 if hz is None else math.ceil(round(self.latency.extra_ms * hz / 1000, 6))

    def task_ids(self, suite: str, known: Iterable[int]) -> list[int] | None:
        """Return the tasks of a suite with the ids `known` that are evaluated; None: all of them."""
        if self.tasks is not None or (self.task_start == 0 and self.task_end is None):
            return self.tasks_of(suite)
        end = math.inf if self.task_end is None else self.task_end
        chosen = [task_id for task_id in known if self.task_start <= task_id < end]
        return chosen or [self.task_start]  # beyond the last task, so that the run is refused with this number

    @property
    def longest_plan_prompt(self) -> int:
        """Tokens of the longest planner prompt, under either name."""
        return self.vlm_max_token_len or self.max_token_len

    @property
    def num_env_actors(self) -> int | Auto:
        """Environments at once, under either of its names."""
        return self.num_parallel if self.num_parallel is not None else self.ray.num_env_actors

    @property
    def env_memory(self) -> int:
        """Bytes reserved for an env actor."""
        return self.load_benchmark().env_memory(int(self.env.memory_gb * 2**30))

    @property
    def largest_batch(self) -> int:
        """Most requests answered together: no more than environments, because room for others takes memory."""
        most = self.batching.max_batch_size
        return most if self.num_env_actors == "auto" else min(most, self.num_env_actors)

    @property
    def suites(self) -> tuple[str, ...]:
        """All suites of the run, in order."""
        return (self.task_suite,) if isinstance(self.task_suite, str) else tuple(self.task_suite)

    @property
    def variations(self) -> dict[str, tuple[str, str]]:
        """Base suite and axis of each suite that perturbs another: libero_goal_lan -> (libero_goal, lan)."""
        found = {suite: self.load_benchmark().variation_of(suite) for suite in self.suites}
        return {suite: axis for suite, axis in found.items() if axis is not None}

    @property
    def data_suites(self) -> tuple[str, ...]:
        """Suites by which training data are named: the base suite of one that is not named after it."""
        bases = {suite: base for suite, (base, _) in self.variations.items() if not is_or_varies(suite, base)}
        return tuple(bases.get(suite, suite) for suite in self.suites)

    def tasks_of(self, suite: str) -> list[int] | None:
        """Return the ids of the suite's tasks that are asked for; None: all."""
        return self.tasks.get(suite) if isinstance(self.tasks, dict) else self.tasks

    def max_steps_of(self, suite: str) -> int | None:
        """Return the limit of steps of the suite's tasks that is asked for; None: their own."""
        limits = self.env.max_steps
        return limits.get(suite) if isinstance(limits, dict) else limits

    def instruction_of(self, suite: str) -> InstructionSource:
        """Return where the instructions of the suite's tasks are from: `env.instruction`, with `auto` decided."""
        return self.load_benchmark().instruction_source(suite, self.env.instruction)

    @property
    def instruction_source(self) -> InstructionSource | dict[str, InstructionSource]:
        """Source of the tasks' instructions: `env.instruction`, with `auto` resolved."""
        sources = {suite: self.instruction_of(suite) for suite in self.suites}
        return sources if len(set(sources.values())) > 1 else sources[self.suites[0]]

    def load_benchmark(self) -> Benchmark:
        """Return the benchmark that has the suites. Raises BadInputError for one that cannot be loaded."""
        return benchmark_of(self.suites[0], self.benchmark)


def path_fields() -> tuple[str, ...]:
    """Return the names of the settings that hold a path."""
    return tuple(
        name
        for name, info in Config.model_fields.items()
        if any(FILE_NAME in getattr(kind, "__metadata__", ()) for kind in get_args(info.annotation))
    )
