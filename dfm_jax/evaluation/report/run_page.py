"""RUN/index.html: one page that says how a run is, made of the run's files alone; it needs no network."""

import html
import importlib.resources
import json
import pathlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from dfm_jax import config as configs
from dfm_jax.config import base_values
from dfm_jax.evaluation import baselines
from dfm_jax.evaluation.report import charts
from dfm_jax.evaluation.report.markdown import (
    BASELINES,
    BOUND_NAMES,
    Report,
    newest_report,
    number,
    with_error,
)
from dfm_jax.runtime import files, terminal
from dfm_jax.runtime.errors import WorldError
from dfm_jax.runtime.terminal import clock
from dfm_jax.training import metrics

PAGE, FACTS = "index.html", "run.json"
EVERY = 60.0  # seconds between two writings while a run trains
SMALL_CHARTS = (  # title, unit, name of the line, its metric
    ("Learning rate", "", "rate", "train/learning_rate"),
    ("Throughput", "tokens a second", "trained", "train/tokens_per_second"),
    ("Gradient norm", "", "norm", "train/grad_norm"),
)
TEXTS, SETS = 4, 4  # texts of a sample set, and sets, that are shown


class RunPage:
    """Writes the page of the run in `workdir`, at most every EVERY seconds unless it has to."""

    def __init__(self, workdir: pathlib.Path):
        self._workdir, self._last = workdir, -float("inf")

    def __call__(self, *, now: bool = False) -> None:
        if now or time.monotonic() - self._last >= EVERY:
            self._last = time.monotonic()
            write(self._workdir)


def keep_facts(workdir: pathlib.Path, facts: Mapping[str, Any]) -> None:
    """What the run's files do not tell: "parameters", "devices", "versions", as texts by their names."""
    files.write_json_atomically(workdir / FACTS, dict(facts))


def write(workdir: pathlib.Path) -> pathlib.Path | None:
    """Writes RUN/index.html from what is in the folder now. None where that is no run, or nothing can be written."""
    try:
        page = render(workdir)
        files.write_atomically(workdir / PAGE, page)
    except (OSError, WorldError, ValueError, KeyError, TypeError) as error:  # whatever was done to its files
        terminal.warn(f"{workdir / PAGE}: not written ({' '.join(str(error).split())})")
        return None
    return workdir / PAGE


def render(workdir: pathlib.Path) -> str:
    """The page. Raises WorldError where `workdir` has no config that can be read."""
    config = configs.load_run(workdir)
    lines = metrics.read(workdir / metrics.FILE)
    report = _report(workdir)
    known = next(iter(baselines.kept(workdir).values()), None)
    template = importlib.resources.files("dfm_jax.evaluation.report").joinpath("run_page.html").read_text("utf-8")
    parts = {
        "TITLE": html.escape(workdir.resolve().name),
        "STATE": _state(config, lines, report),
        "CURVES": _curves(config, lines, known),
        "FIGURES": _figures(report, known),
        "SAMPLES": _samples(workdir),
        "CONFIG": _config(config),
        "FACTS": _facts(workdir, lines, report),
        "COMMANDS": _commands(workdir),
    }
    return re.sub("__([A-Z]+)__", lambda match: parts[match[1]], template)  # in one pass: a text may look like a mark


def _report(workdir: pathlib.Path) -> Report | None:
    try:
        return newest_report(workdir)
    except WorldError:
        return None


def _state(config: configs.Config, lines: Sequence[Mapping[str, Any]], report: Report | None) -> str:
    """The sentence under the title."""
    done, last = max((line["step"] for line in lines), default=0), config.optim.n_iters
    seconds = _last(lines, "train/step_time")
    if done < last:
        left = f", about {clock((last - done) * seconds)} left" if seconds else ""
        words = [f"step {done:,} of {last:,}{left}"]
    else:
        words = [f"finished, {last:,} steps"]
    if (loss := _last(lines, "eval/loss")) is not None:
        words.append(f"loss of the validation text {loss:.4f} nats a token")
    elif (loss := _last(lines, "train/loss")) is not None:
        words.append(f"training loss {loss:.4f} nats a token")
    if report is not None and report.likelihood:
        entry = next(iter(report.likelihood.values()))
        bits = entry.get("bits_per_byte")
        words.append(
            f"at most {entry['nats_per_token']:.4f} nats a token" + (f", {bits:.3f} bits a byte" if bits else "")
        )
    return html.escape(" · ".join(words))


def _curves(config: configs.Config, lines: Sequence[Mapping[str, Any]], known: baselines.Baselines | None) -> str:
    rules = {} if known is None else {"unigram": known.unigram, "bigram": known.bigram}
    loss = charts.chart(
        "Loss",
        "nats a token",
        {
            "training": charts.Series(_series(lines, "train/loss"), smoothed=True),
            "validation text": charts.Series(_series(lines, "eval/loss"), dots=True),
        },
        rules=rules,
        last=config.optim.n_iters,
    )
    shown = []
    for title, unit, name, key in SMALL_CHARTS:
        series = {name: charts.Series(_series(lines, key))}
        from_zero = name == "trained"
        shown.append(charts.chart(title, unit, series, last=config.optim.n_iters, from_zero=from_zero, small=True))
    return (loss or "<p>No step has been logged yet.</p>") + f'<div class="small">{"".join(filter(None, shown))}</div>'


def _figures(report: Report | None, known: baselines.Baselines | None) -> str:
    """The bounds with their errors, beside the baselines."""
    rows: list[Sequence[str]] = []
    for corpus, entry in report.likelihood.items() if report else ():
        for name, bound in entry["bounds"].items():
            label = f"{BOUND_NAMES.get(name, name)} (bound)"
            nats = with_error(bound["nats_per_token"], bound["stderr"])
            rows.append((corpus, label, nats, number(bound["perplexity"], 2), number(bound["bits_per_byte"], 3)))
    if known is not None:
        for name, value in known.entry().items():
            bits = number(value["bits_per_byte"], 3)
            rows.append(("without a network", BASELINES[name], number(value["nats_per_token"], 4), "", bits))
    if not rows:
        return "<p>The run is evaluated at its end, or by <code>--mode=eval</code>.</p>"
    note = (
        "A bound is what the text costs at most under the model; ± is one standard error. A model that has learned "
        "more than pairs of tokens is below the bigram."
    )
    return _table(("text", "", "nats a token", "perplexity", "bits a byte"), rows) + f"<p>{note}</p>" + _judged(report)


def _judged(report: Report | None) -> str:
    if report is None or not report.generation:
        return ""
    kinds = {"samples": report.generation, "real text": report.generation.get("real_text") or {}}
    rows = [
        (
            name,
            number(entry.get("ppl_token_mean"), 1),
            number(entry.get("entropy_bits"), 3),
            number(entry.get("repetition"), 3),
        )
        for name, entry in kinds.items()
        if entry
    ]
    return _table(("texts", "perplexity under the judge", "entropy, bits", "repeated 4-grams"), rows)


def _samples(workdir: pathlib.Path) -> str:
    """The newest sample set as it plays, and the texts of that and some before it, with their prompts."""
    found = sorted((workdir / "samples").glob("*.jsonl"), key=lambda path: path.stat().st_mtime, reverse=True)
    parts = []
    player = next((path.with_suffix(".html") for path in found if path.with_suffix(".html").exists()), None)
    if player is not None:
        page = html.escape(player.read_text(encoding="utf-8"), quote=True)
        parts.append(
            f'<iframe title="samples that play" loading="lazy" sandbox="allow-scripts" srcdoc="{page}"></iframe>'
        )
    for number_of_set, path in enumerate(found[:SETS]):
        lines = []
        with path.open(encoding="utf-8") as file:
            for _, line in zip(range(TEXTS), file, strict=False):
                lines.append(json.loads(line))
        settings = lines[0].get("settings", {}) if lines else {}
        prompt = f", prompt “{settings['prompt']}”" if settings.get("prompt") else ""
        shown = "".join(f"<pre>{html.escape(line['text'])}</pre>" for line in lines)
        title = html.escape(f"{path.stem}: {settings.get('method', '')}, {settings.get('steps', '')} steps{prompt}")
        parts.append(f"<details{' open' * (not number_of_set)}><summary>{title}</summary>{shown}</details>")
    return "".join(parts) or "<p>None yet: <code>--mode=sample</code> writes some.</p>"


def _config(config: configs.Config) -> str:
    """The fields that are not as `configs/base.py` has them."""
    base = configs.TABLE
    usual = {name: base_values.ANY_TEXT.get(name, field.default) for name, field in base.items()}
    rows = [
        (f"{name}", _value(value), _value(usual[name])) for name, value in config.flat().items() if value != usual[name]
    ]
    return _table(("field", "this run", "configs/base.py"), rows)


def _value(value: Any) -> str:
    text = ", ".join(value) if isinstance(value, tuple) else str(value)
    return text or "(nothing)"


def _facts(workdir: pathlib.Path, lines: Sequence[Mapping[str, Any]], report: Report | None) -> str:
    try:
        facts = dict(json.loads((workdir / FACTS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        facts = {}
    if (speed := _last(lines, "train/tokens_per_second")) is not None:
        facts["throughput"] = f"{speed:,.0f} tokens a second"
    if (mfu := _last(lines, "train/mfu")) is not None:
        facts["model FLOPs utilization"] = f"{mfu:.1%}"
    if report is not None:
        facts["evaluated"] = f"{report.provenance.get('finished', '')}, {report.provenance.get('seconds', '')} seconds"
    facts["page written"] = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    return _table(("", ""), [(name, str(value)) for name, value in facts.items()])


def _commands(workdir: pathlib.Path) -> str:
    flags = (
        {"mode": "sample", "workdir": workdir, "prompt": "The "},
        {"mode": "eval", "workdir": workdir, "config.eval.time_points": 1024},
        {"mode": "export", "workdir": workdir},
    )
    return "".join(f"<pre>{html.escape(terminal.command(each))}</pre>" for each in flags)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def cells(row: Sequence[str], kind: str) -> str:
        return "<tr>" + "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in row) + "</tr>"

    top = f"<thead>{cells(head, 'th')}</thead>" if any(head) else ""
    return f'<div class="wide"><table>{top}<tbody>{"".join(cells(row, "td") for row in rows)}</tbody></table></div>'


def _series(lines: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(line["step"], line[name]) for line in lines if isinstance(line.get(name), (int, float))]


def _last(lines: Sequence[Mapping[str, Any]], name: str) -> float | None:
    found = _series(lines, name)
    return found[-1][1] if found else None
