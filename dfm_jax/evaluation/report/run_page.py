"""RUN/index.html: one page that says how a run is, made of the run's files alone; it needs no network."""

import html
import importlib.resources
import json
import math
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
from dfm_jax.training.watch import Falling

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
    known = next(iter(baselines.kept(workdir).values()), None) if _of_its_own_text(config) else None
    template = importlib.resources.files("dfm_jax.evaluation.report").joinpath("run_page.html").read_text("utf-8")
    facts = _facts(workdir, lines, report)
    parts = {
        "TITLE": html.escape(workdir.resolve().name),
        "WHAT": _what(config, facts),
        "STATE": _state(config, lines),
        "LOSS": _loss(config, lines, known),
        "COSTS": _costs(config, lines, report, known),
        "TEXT": _first_text(workdir),
        "COMMANDS": _commands(workdir, finished=_done(lines) >= config.optim.n_iters),
        "FIGURES": _figures(report, known),
        "SAMPLES": _samples(workdir),
        "CHARTS": _small_charts(config, lines),
        "CONFIG": _config(config),
        "FACTS": _table(("", ""), list(facts.items())),
    }
    return re.sub("__([A-Z]+)__", lambda match: parts[match[1]], template)  # in one pass: a text may look like a mark


def _report(workdir: pathlib.Path) -> Report | None:
    try:
        return newest_report(workdir)
    except WorldError:
        return None


def _of_its_own_text(config: configs.Config) -> bool:
    """Whether what is evaluated first, which the baselines are of, is the text of the validation curve."""
    return bool(config.eval.corpora) and config.eval.corpora[0] in ("data.valid", config.data.valid)


def _what(config: configs.Config, facts: Mapping[str, str]) -> str:
    """The line that says what run this is."""
    loss = config.flow.loss_function
    words = [f"text {config.data.train}", f"tokens {config.tokenizer.name}"]
    words += [f"{config.flow.source_distribution} source", f"loss {BOUND_NAMES.get(loss, loss.replace('_', ' '))}"]
    words += [f"{facts['parameters'].partition(', products')[0]} parameters"] if "parameters" in facts else []
    return html.escape(" · ".join(words))


def _done(lines: Sequence[Mapping[str, Any]]) -> int:
    return max((line["step"] for line in lines), default=0)


def _state(config: configs.Config, lines: Sequence[Mapping[str, Any]]) -> str:
    """The line that says how far it is, and whether the loss of the validation text still falls."""
    done, last = _done(lines), config.optim.n_iters
    seconds = _last(lines, "train/step_time")
    if done < last:
        left = f", about {clock((last - done) * seconds)} left" if seconds else ""
        words = [f"step {done:,} of {last:,}{left}"]
    else:
        words = [f"finished, {last:,} steps"]
    evaluated = metrics.series(lines, "eval/loss")
    if len(evaluated) > 1:
        falls = Falling(evaluated)
        if not falls.since:
            words.append(f"the validation loss still {'fell at the end' if done >= last else 'falls'}")
        else:
            times = "at the last evaluation" if falls.since == 1 else f"for {falls.since} evaluations"
            words.append(f"the validation loss is lowest at step {falls.step:,} and has not fallen {times}")
    elif (loss := _last(lines, "train/loss")) is not None:
        words.append(f"training loss {loss:.4f} nats a token")
    return html.escape(" · ".join(words))


def _loss(config: configs.Config, lines: Sequence[Mapping[str, Any]], known: baselines.Baselines | None) -> str:
    bounds = not metrics.series(lines, "eval/loss") or metrics.series(lines, "eval/perplexity")
    # Beside a loss that bounds nothing the baselines say nothing.
    rules = {"unigram": known.unigram, "bigram": known.bigram} if known is not None and bounds else {}
    loss = charts.chart(
        "Loss" if bounds else "Loss (no bound)",
        "nats a token",
        {
            "training": charts.Series(metrics.series(lines, "train/loss"), smoothed=True),
            "validation text": charts.Series(metrics.series(lines, "eval/loss"), dots=True),
        },
        rules=rules,
        last=config.optim.n_iters,
    )
    return loss or '<figure class="large"><p>No step has been logged yet.</p></figure>'


def _costs(
    config: configs.Config,
    lines: Sequence[Mapping[str, Any]],
    report: Report | None,
    known: baselines.Baselines | None,
) -> str:
    """The text's cost under the model beside that without a network, as bars from 0."""
    corpus, entry = next(iter(report.likelihood.items()), ("", {})) if report else ("", {})
    others = entry.get("baselines") or (known.entry() if known is not None else {})
    bars = {BASELINES[name].partition(" -9")[0]: value for name, value in others.items() if name in BASELINES}
    if entry:
        bars["this model, at most"] = entry
    elif known is not None and (now := metrics.series(lines, "eval/perplexity")):
        nats = math.log(now[-1][1])
        bars[f"this model, step {now[-1][0]:,}"] = {"nats_per_token": nats, "bits_per_byte": known.bits_per_byte(nats)}
    # Bits a byte compare between tokenizers; tokens that stand for no text have none.
    name, unit = ("bits_per_byte", "bits a byte")
    if not all(math.isfinite(value.get(name) or math.nan) for value in bars.values()):
        name, unit = "nats_per_token", "nats a token"
    costs = {label: value[name] for label, value in bars.items() if value.get(name)}
    if not costs:
        return ""
    most = max(costs.values())
    rows = "".join(
        f'<div class="{"ours" if label.startswith("this") else ""}"><span>{html.escape(label)}</span>'
        f'<b>{number(cost, 3)}</b><i><u style="width:{100 * cost / most:.1f}%"></u></i></div>'
        for label, cost in sorted(costs.items(), key=lambda pair: -pair[1])
    )
    title = f"What {html.escape(corpus) or 'the validation text'} costs, {unit}"
    return f'<figure class="costs"><figcaption>{title}</figcaption>{rows}<p>Less is better.</p></figure>'


def _small_charts(config: configs.Config, lines: Sequence[Mapping[str, Any]]) -> str:
    shown = []
    for title, unit, name, key in SMALL_CHARTS:
        series = {name: charts.Series(metrics.series(lines, key))}
        from_zero = name != "norm"
        shown.append(charts.chart(title, unit, series, last=config.optim.n_iters, from_zero=from_zero, small=True))
    return f'<div class="three">{"".join(shown)}</div>'


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
    columns = {
        "ppl_token_mean": "perplexity under the judge",
        "entropy_bits": "entropy, bits",
        "repetition": "repeated 4-grams",
    }
    if report.generation.get("ppl_token_mean") is None:  # without a judge
        del columns["ppl_token_mean"]
    rows = [(kind, *(number(entry.get(name), 3) for name in columns)) for kind, entry in kinds.items() if entry]
    return _table(("texts", *columns.values()), rows)


def _sets(workdir: pathlib.Path) -> list[pathlib.Path]:
    """The sample sets, the newest first."""
    return sorted((workdir / "samples").glob("*.jsonl"), key=lambda path: path.stat().st_mtime, reverse=True)[:SETS]


def _texts(path: pathlib.Path, most: int) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for _, line in zip(range(most), file, strict=False)]


def _called(path: pathlib.Path, settings: Mapping[str, Any]) -> str:
    prompt = f", prompt “{settings['prompt']}”" if settings.get("prompt") else ""
    return html.escape(f"{path.stem}: {settings.get('method', '')}, {settings.get('steps', '')} steps{prompt}")


def _first_text(workdir: pathlib.Path) -> str:
    """The first text of the newest sample set."""
    for path in _sets(workdir):
        for line in _texts(path, 1):
            return f"<pre>{html.escape(line['text'])}</pre><p>{_called(path, line.get('settings', {}))}</p>"
    return "<p>None yet: <code>--mode=sample</code> writes some, and so does the evaluation at the end.</p>"


def _samples(workdir: pathlib.Path) -> str:
    """The newest sample set as it plays, and the texts of that and some before it, with their prompts."""
    found, parts = _sets(workdir), []
    player = next((path.with_suffix(".html") for path in found if path.with_suffix(".html").exists()), None)
    if player is not None:
        page = html.escape(player.read_text(encoding="utf-8"), quote=True)
        parts.append(
            f'<iframe title="samples that play" loading="lazy" sandbox="allow-scripts" srcdoc="{page}"></iframe>'
        )
    for path in found:
        lines = _texts(path, TEXTS)
        shown = "".join(f"<pre>{html.escape(line['text'])}</pre>" for line in lines)
        title = _called(path, lines[0].get("settings", {}) if lines else {})
        parts.append(f"<details><summary>{title}</summary>{shown}</details>")
    return f"<h2>Samples as they come about</h2>{''.join(parts)}" if parts else ""


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


def _facts(workdir: pathlib.Path, lines: Sequence[Mapping[str, Any]], report: Report | None) -> dict[str, str]:
    """Name and value of what is known of the run beside its config."""
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
    return {name: str(value) for name, value in facts.items()}


def _commands(workdir: pathlib.Path, *, finished: bool) -> str:
    goes_on: dict[str, dict[str, Any]] = {} if finished else {"Go on where it was stopped": {"workdir": workdir}}
    shown = goes_on | {
        "Texts that begin as you like": {"mode": "sample", "workdir": workdir, "prompt": "The "},
        "A smaller error of the bound": {"mode": "eval", "workdir": workdir, "config.eval.time_points": 1024},
        "The weights as one file": {"mode": "export", "workdir": workdir},
    }
    return "".join(f"<p>{why}</p><pre>{html.escape(terminal.command(flags))}</pre>" for why, flags in shown.items())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def cells(row: Sequence[str], kind: str) -> str:
        return "<tr>" + "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in row) + "</tr>"

    top = f"<thead>{cells(head, 'th')}</thead>" if any(head) else ""
    return f'<div class="wide"><table>{top}<tbody>{"".join(cells(row, "td") for row in rows)}</tbody></table></div>'


def _last(lines: Sequence[Mapping[str, Any]], name: str) -> float | None:
    found = metrics.series(lines, name)
    return found[-1][1] if found else None
