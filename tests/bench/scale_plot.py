"""Figure with the curves of `scale`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.scale_curves import Point, bends
from wpray.errors import BadInputError


def plot(points: Sequence[Point], driver_ms: float, path: Path) -> None:
    """Draw episodes per minute over env actors, a curve per number of GPUs with its bend; the driver's limit is dashed.

    Needs matplotlib. Raise BadInputError if the file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "wpray", "font.size": 10}):
        figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
        _draw(axes, points, driver_ms)
        try:
            figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        except OSError as error:
            raise BadInputError(f"--plot {path}: cannot be written ({error.strerror})") from error
        finally:
            pyplot.close(figure)


def _draw(axes: Any, points: Sequence[Point], driver_ms: float) -> None:
    marked = list(bends(points))
    curves = [list(group) for _, group in itertools.groupby(points, key=lambda point: point.outcome.gpus)]
    for number, (curve, bend) in enumerate(zip(curves, marked, strict=True)):
        colour = f"C{number}"
        label = f"{bend.outcome.gpus} GPU{'s' if bend.outcome.gpus > 1 else ''}"
        line = [point.outcome for point in curve]
        axes.plot([p.env_actors for p in line], [p.per_min for p in line], ".-", color=colour, label=label)
        axes.plot(bend.outcome.env_actors, bend.outcome.per_min, "o", mfc="none", ms=10, color=colour)
    if driver_ms > 0:
        axes.axhline(60_000 / driver_ms, ls="--", color="grey", label=f"driver ({driver_ms:.1f} ms an episode)")
    axes.set(xscale="log", yscale="log", xlabel="env actors (a core each)", ylabel="episodes a minute (simulated)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
