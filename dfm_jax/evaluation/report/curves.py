"""The loss curve of a run, as a picture in its folder."""

import io
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from dfm_jax.evaluation.report import charts
from dfm_jax.runtime import files
from dfm_jax.training import metrics

INK, TRAIN, EVAL = "#33383f", "#2a6fbb", "#d9622b"


def loss_curve(workdir: str | os.PathLike) -> pathlib.Path | None:
    """Draws the training and evaluation loss in `workdir/metrics.jsonl`, nats per token, to `workdir/loss.png`.

    Returns its path, or None if there is no loss to draw yet.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    workdir = pathlib.Path(workdir)
    lines = metrics.read(workdir / metrics.FILE)
    train, evaluated = (metrics.series(lines, name) for name in ("train/loss", "eval/loss"))
    if not train and not evaluated:
        return None
    steps, losses = _columns(train)
    eval_steps, eval_losses = _columns(evaluated)

    figure = Figure(figsize=(8, 4.5), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if len(steps):
        smooth = _columns(charts.smooth(train))[1]
        many = len(steps) > 10
        if many:
            axes.plot(steps, losses, color=TRAIN, alpha=0.25, linewidth=0.8)
        axes.plot(steps, smooth if many else losses, color=TRAIN, linewidth=1.8, label="train")
        _annotate(axes, steps[-1], smooth[-1], TRAIN)
    if len(eval_steps):
        marker = "o" if len(eval_steps) <= 50 else None
        axes.plot(eval_steps, eval_losses, color=EVAL, marker=marker, markersize=4.5, linewidth=1.4, label="evaluation")
        # Write the figure next to the last point, and lower if it would cover the figure of the training loss.
        near = len(steps) > 0 and abs(eval_losses[-1] - losses[-1]) < 0.04 * (losses.max() - losses.min())
        _annotate(axes, eval_steps[-1], eval_losses[-1], EVAL, lower=11 if near else 0)

    everything = np.concatenate([losses, eval_losses])
    low, high = everything.min(), np.percentile(everything, 99.5)  # a spike must not flatten the rest
    margin = 0.05 * (high - low) or 0.5
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title(workdir.absolute().name, loc="left", color=INK, fontsize=11)
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#b8bec6")
    axes.tick_params(colors=INK, length=0, labelsize=9)
    axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}".replace(",", " "))
    axes.legend(frameon=False, loc="upper right", labelcolor=INK, fontsize=9)

    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    path = workdir / "loss.png"
    files.write_atomically(path, picture.getvalue())
    return path


def _columns(points: Sequence[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.asarray(steps, np.int64), np.asarray(values, np.float64)


def _annotate(axes, step: int, loss: float, color: str, *, lower: float = 0) -> None:
    place = {"xytext": (5, -lower), "textcoords": "offset points", "va": "center"}
    axes.annotate(f"{loss:.3f}", (step, loss), color=color, fontsize=9, **place)
