"""The tables and the picture of `study.py`, from its lines."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.runs_compared import mean_and_error

Scale = Mapping[str, Mapping[str, float]]
NAMES = {
    "cross_entropy": "cross entropy",
    "generalized_kl": "generalized KL",
    "time_reversal": "time reversal",
    "two_stage:div_free=1": "two-stage, c = 1",
}
# Colours that colour-blind readers tell apart (Okabe and Ito), each with a marker of its own.
STYLES = {
    "exact": ("#0072B2", "o", "-"),
    "euler": ("#D55E00", "s", "--"),
    "two_stage:div_free=1": ("#009E73", "^", "-."),
    "ancestral": ("#CC79A7", "D", ":"),
}
BOUND_COLUMNS = (
    ("bounds", "generalized_kl"),
    ("bounds", "time_reversal"),
    ("bounds_of_samples", "exact"),
    ("bounds_of_samples", "ancestral"),
)
INK, FAINT = "#33383f", "#8a919b"
# A text of the scale that each row of the picture shows beside the networks, and its line.
MARKS = {"nats": ("samples of a 2-gram model", (0, (1, 1.5))), "entropy": ("real text", (0, (6, 2)))}


def name(word: str) -> str:
    return NAMES.get(word, word)


def groups(rows: Sequence[dict]) -> dict[tuple[str, str], list[dict]]:
    """(source, loss) -> its lines, one a seed."""
    keys = dict.fromkeys((row["source"], row["loss"]) for row in rows)
    return {key: [row for row in rows if (row["source"], row["loss"]) == key] for key in keys}


def tables(rows: Sequence[dict], scale: Scale) -> str:
    """Markdown: bounds; samples by sampler and steps; samplers within each run; what the judge says of known texts."""
    return "\n\n".join([_bounds(rows), _samples(rows, scale["real text"]), _within_runs(rows), _scale(scale)])


def _bounds(rows: Sequence[dict]) -> str:
    lines = [
        "| source | trained by | runs | text by GKL (one-way) | by TR (time reversal) | own samples of `exact` by GKL |"
        " own samples of `ancestral` by TR |",
        "|---" * 7 + "|",
    ]
    for (source, loss), runs in groups(rows).items():
        cells = [
            mean_and_error([run[kind][key] for run in runs]) if key in runs[0][kind] else "the same"
            for kind, key in BOUND_COLUMNS
        ]
        lines.append(f"| {source} | {name(loss)} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _samples(rows: Sequence[dict], real: Mapping[str, float]) -> str:
    steps = list(next(iter(rows[0]["samples"].values())))
    heads = [f"{n} steps: nats/byte | entropy" for n in steps]
    lines = [
        f"| source | trained by | sampler | {' | '.join(heads)} |",
        "|---" * (2 * len(steps) + 3) + "|",
    ]
    for (source, loss), runs in groups(rows).items():
        for method in runs[0]["samples"]:
            cells = [
                mean_and_error([run["samples"][method][n][kind] for run in runs], 2)
                for n in steps
                for kind in ("nats", "entropy")
            ]
            lines.append(f"| {source} | {name(loss)} | {name(method)} | {' | '.join(cells)} |")
    cell = f"{real['nats']:.2f} | {real['entropy']:.2f}"
    lines.append(f"| real text | | | {' | '.join([cell] * len(steps))} |")
    return "\n".join(lines)


def _within_runs(rows: Sequence[dict]) -> str:
    """Differences between two samplings of one network, over all networks: their own differences cancel."""
    steps = list(next(iter(rows[0]["samples"].values())))
    heads = [f"{n} steps: nats/byte | entropy" for n in steps]
    lines = [f"| difference | runs | {' | '.join(heads)} |", "|---" * (2 * len(steps) + 2) + "|"]
    methods = dict.fromkeys(method for row in rows for method in row["samples"])
    pairs = {f"{name(method)} − exact": [(method, n, "exact", n) for n in steps] for method in methods}
    pairs = {title: pair for title, pair in pairs.items() if title != "exact − exact"}
    pairs[f"exact − exact in {steps[0]} steps"] = [("exact", n, "exact", steps[0]) for n in steps]
    for title, columns in pairs.items():
        having = [row["samples"] for row in rows if columns[0][0] in row["samples"]]
        cells = [
            mean_and_error([of[method][n][kind] - of[other][m][kind] for of in having], 2)
            for method, n, other, m in columns
            for kind in ("nats", "entropy")
        ]
        lines.append(f"| {title} | {len(having)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _scale(scale: Scale) -> str:
    lines = ["| text | judge, nats/byte | entropy | its own nats/byte of real text |", "|---|---|---|---|"]
    for text, row in scale.items():
        own = f"{row['own']:.2f}" if "own" in row else ""
        lines.append(f"| {text} | {row['nats']:.2f} | {row['entropy']:.2f} | {own} |")
    return "\n".join(lines)


def picture(rows: Sequence[dict], scale: Scale, path: pathlib.Path) -> None:
    """A column for each source and loss: the judge's nats per byte above, the entropy below, against the steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = groups(rows)
    figure = Figure(figsize=(2.6 * len(columns) + 0.8, 6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(columns), sharex=True, sharey="row", squeeze=False, height_ratios=(3, 2))
    for column, ((source, loss), runs) in enumerate(columns.items()):
        for row, kind in enumerate(("nats", "entropy")):
            _panel(axes[row, column], runs, kind)
            text, line = MARKS[kind]
            axes[row, column].axhline(
                scale[text][kind], color=FAINT, linestyle=line, linewidth=1.3, zorder=0, label=text
            )
        axes[0, column].set_title(f"{source}, {name(loss)}", color=INK, fontsize=11)
        axes[1, column].set_xlabel("sampling steps", color=INK)
    axes[0, 0].set_ylabel("nats per byte by the 5-gram judge", color=INK)
    axes[1, 0].set_ylabel("entropy in a sample, nats", color=INK)
    handles = {label: handle for ax in axes.flat for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _panel(ax, runs: Sequence[dict], kind: str) -> None:
    methods = list(runs[0]["samples"])
    for number, method in enumerate(methods):
        color, marker, line = STYLES[method]
        steps = list(runs[0]["samples"][method])
        values = np.array([[run["samples"][method][n][kind] for n in steps] for run in runs])
        error = values.std(0, ddof=1) / len(runs) ** 0.5 if len(runs) > 1 else None
        # Beside each other, so that error bars do not cover each other.
        x = np.array([float(n) for n in steps]) * 1.07 ** (number - (len(methods) - 1) / 2)
        style = {"color": color, "marker": marker, "linestyle": line, "markersize": 5.5, "linewidth": 1.4, "capsize": 3}
        ax.errorbar(x, values.mean(0), error, label=name(method), **style)
    ax.set_xscale("log", base=2)
    ax.set_xticks([float(n) for n in steps], steps)
    ax.minorticks_off()
    ax.grid(axis="y", color="#e4e7eb", linewidth=0.8)
    ax.tick_params(colors=INK, length=0, labelsize=9)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
