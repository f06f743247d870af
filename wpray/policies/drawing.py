"""Place where the policy's pictures are drawn: in each environment, or by render actors beside the policy's GPUs."""

from __future__ import annotations

from dataclasses import dataclass

from wpray.config import Config
from wpray.policies.base import PolicySpec
from wpray.system import gl


@dataclass(frozen=True, slots=True)
class DrawingPlace:
    """Place where pictures are drawn, and what decides it."""

    remote: bool  # by render actors; else by each environment
    because: str

    @property
    def name(self) -> str:
        """The value of `env.render` that it corresponds to."""
        return "remote" if self.remote else "local"

    def __str__(self) -> str:
        """Return the place in words."""
        return f"{'by render actors' if self.remote else 'by each environment'}, because {self.because}"


def drawing_place(config: Config, spec: PolicySpec, gpus: int) -> DrawingPlace:
    """Return where a run draws for its policy; `gpus` are those of this machine, or of the cluster that it joins."""
    benchmark, asked = config.load_benchmark(), config.env.render
    if not spec.images:
        return DrawingPlace(False, f"policy {spec.name} sees no pictures")
    if asked != "auto":
        return DrawingPlace(asked == "remote", f"env.render is {asked}")
    if not benchmark.draws_remotely:
        return DrawingPlace(False, "the benchmark has no other way")
    if not benchmark.uses_opengl:
        return DrawingPlace(False, "no OpenGL is needed")
    if not gpus or not policy_gpus(config, spec):
        return DrawingPlace(False, "no policy actor has a GPU")
    if _renderer(config) == "osmesa":
        return DrawingPlace(False, "OSMesa draws on the cores, where environments are")
    if config.ray.address is None:
        return DrawingPlace(False, "environments of this machine draw on its GPU as fast as render actors would")
    return DrawingPlace(True, "nodes without a GPU would draw on their cores")


def policy_gpus(config: Config, spec: PolicySpec) -> float:
    """Return the GPUs that each policy actor asks for."""
    return config.ray.policy_resources.get("GPU", spec.num_gpus)


def _renderer(config: Config) -> gl.Renderer | None:
    """Return the renderer; None if a cluster's nodes select it: one with a GPU takes EGL."""
    wanted = config.env.renderer
    return gl.resolve(wanted) if config.ray.address is None else gl.asked_for(wanted)
