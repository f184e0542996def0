"""The plots of an evaluation: the integrand of each bound, and perplexity against entropy."""

import io
import os
import pathlib
from collections.abc import Mapping, Sequence

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
    path: str | os.PathLike, points: Sequence[Mapping[str, float]], title: str, real: Mapping[str, float] | None = None
) -> pathlib.Path:
    """Draws generative perplexity against entropy: one line per number of steps, one point per temperature.

    points: each has `steps`, `temperature`, `ppl_token_mean`, `entropy_nats`. real: the last two for real text.
    """
    figure, axes = _figure(title, "entropy of a text's tokens (nats)", "generative perplexity (token mean)")
    for steps, color in zip(sorted({p["steps"] for p in points}), PALETTE * 9, strict=False):
        own = sorted((p for p in points if p["steps"] == steps), key=lambda p: p["temperature"])
        x, y = [p["entropy_nats"] for p in own], [p["ppl_token_mean"] for p in own]
        axes.plot(x, y, color=color, marker="o", markersize=4, linewidth=1.4, label=f"{steps:,.0f} steps")
        for p in own:
            at = (p["entropy_nats"], p["ppl_token_mean"])
            axes.annotate(
                f"{p['temperature']:g}", at, xytext=(4, 4), textcoords="offset points", fontsize=7, color=color
            )
    if real is not None:
        axes.plot(real["entropy_nats"], real["ppl_token_mean"], "*", color=INK, markersize=13, label="real text")
    axes.set_yscale("log")
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    return _save(figure, path)


def _figure(title: str, xlabel: str, ylabel: str):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=INK, length=0, labelsize=9)
    return figure, axes


def _save(figure, path: str | os.PathLike) -> pathlib.Path:
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    files.write_atomically(path, picture.getvalue())
    return pathlib.Path(path)
