"""The plots of an evaluation: the integrand of each bound, and perplexity against entropy."""

import io
import itertools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dfm_jax.evaluation.likelihood import LikelihoodResult
from dfm_jax.runtime import files

INK, PALETTE = "#33383f", ("#2a6fbb", "#d9622b", "#3a8f5c", "#8a56b0", "#b8891b", "#c2406b")
BINS = 64


def contribution(path: str | os.PathLike, results: Mapping[str, LikelihoodResult], title: str) -> pathlib.Path:
    """Draws the integrand of each bound against kappa, nats per token. The area under a curve is the bound."""
    figure, axes = _figure(title, "kappa (share of the tokens already as in the data)", "integrand, nats per token")
    for (name, result), color in zip(results.items(), PALETTE, strict=False):
        if len(result.curve):
            parts = np.array_split(result.curve, min(BINS, len(result.curve)))
            edges = (
                np.concatenate([[0], np.cumsum([len(part) for part in parts])]) / len(result.curve) * (1 - result.eps)
            )
            label = f"{name.replace('_', ' ')}: {result.nats_per_token:.3f}"
            axes.stairs([part.mean() for part in parts], edges, color=color, linewidth=1.6, label=label)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    return _save(figure, path)


def frontier(
    path: str | os.PathLike, points: Sequence[Mapping[str, Any]], title: str, real: Mapping[str, float] | None = None
) -> pathlib.Path:
    """Draws generative perplexity against entropy, and against evaluations of the network, for the same points.

    points: each has `method`, `corrector`, `steps`, `temperature`, `evaluations`, `ppl_token_mean`, `entropy_nats`. On
    the left a line is a sampler and a number of steps, a point a temperature; on the right a line is a sampler and a
    temperature. real: the last two for real text.
    """
    labels = ("entropy of a text's tokens (nats)", "generative perplexity (token mean)")
    figure, axes = _figure(title, *labels, panels=2)
    for (sampler, steps), own, color in _lines(points, "steps", "temperature"):
        x, y = [p["entropy_nats"] for p in own], [p["ppl_token_mean"] for p in own]
        axes[0].plot(x, y, color=color, marker="o", markersize=4, linewidth=1.4, label=f"{sampler}{steps:,.0f} steps")
        for p in own:
            at = (p["entropy_nats"], p["ppl_token_mean"])
            axes[0].annotate(
                f"{p['temperature']:g}", at, xytext=(4, 4), textcoords="offset points", fontsize=7, color=color
            )
    for (sampler, temperature), own, color in _lines(points, "temperature", "evaluations"):
        x, y = [p["evaluations"] for p in own], [p["ppl_token_mean"] for p in own]
        label = f"{sampler}temperature {temperature:g}"
        axes[1].plot(x, y, color=color, marker="o", markersize=4, linewidth=1.4, label=label)
    axes[1].set(xlabel="evaluations of the network per text", ylabel="")
    axes[1].set_xscale("log", base=2)
    if real is not None:
        axes[0].plot(real["entropy_nats"], real["ppl_token_mean"], "*", color=INK, markersize=13, label="real text")
        axes[1].axhline(real["ppl_token_mean"], color=INK, linewidth=0.8, linestyle=":", label="real text")
    for panel in axes:
        panel.set_yscale("log")
        panel.legend(frameon=False, labelcolor=INK, fontsize=8)
    return _save(figure, path)


def _lines(points: Sequence[Mapping[str, Any]], line: str, along: str) -> Iterator[tuple[tuple[str, float], list, str]]:
    """(sampler, value of `line`), its points in order of `along`, and a colour. One sampler alone has no name."""

    def name(point: Mapping[str, Any]) -> str:
        return " + ".join(filter(None, (point["method"], point["corrector"])))

    samplers = list(dict.fromkeys(map(name, points)))
    keys = [(sampler, value) for sampler in samplers for value in sorted({p[line] for p in points})]
    for (sampler, value), color in zip(keys, itertools.cycle(PALETTE)):
        own = sorted((p for p in points if name(p) == sampler and p[line] == value), key=lambda p: p[along])
        if own:
            yield (f"{sampler}, " if len(samplers) > 1 else "", value), own, color


def _figure(title: str, xlabel: str, ylabel: str, panels: int = 1) -> tuple[Any, Any]:
    """The figure, and its axes: one, or a list of `panels`, all with these labels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8 if panels == 1 else 6 * panels, 4.5), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    every = [figure.add_subplot(1, panels, 1 + panel) for panel in range(panels)]
    every[0].set_title(title, loc="left", color=INK, fontsize=11)
    for axes in every:
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.tick_params(colors=INK, length=0, labelsize=9)
    return figure, every[0] if panels == 1 else every


def _save(figure, path: str | os.PathLike) -> pathlib.Path:
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    files.write_atomically(path, picture.getvalue())
    return pathlib.Path(path)
