"""An evaluation as JSON (`eval/step_N.json`) and as a page to read (`eval/report.md`)."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from dfm_jax.evaluation.diversity import Diversity
from dfm_jax.evaluation.judge.perplexity import Judgement
from dfm_jax.evaluation.likelihood import LikelihoodResult
from dfm_jax.runtime import files, terminal
from dfm_jax.runtime.errors import WorldError

PROCESSES = {
    "one_way": "one-way (`exact`, `euler`)",
    "time_reversal": "time reversal (`ancestral`)",
}
BASELINES = {"unigram": "unigram", "bigram": "bigram", "gzip": "gzip -9 of the text alone"}
BOUND_NAMES = {
    "generalized_kl": "generalized KL",
    "time_reversal": "time reversal",
    "masked_elbo": "masked ELBO",
    "masked_count": "random orders",
}


def likelihood_entry(results: Mapping[str, LikelihoodResult]) -> dict[str, Any]:
    """The JSON of one corpus: the figures of the first bound, and those of all bounds under `bounds`."""

    def figures(result: LikelihoodResult) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "bound": result.bound,
            "process": result.process,
            "nats_per_token": result.nats_per_token,
            "stderr": result.stderr,
            "perplexity": result.perplexity,
            "bits_per_byte": result.bits_per_byte,
            "blocks": result.blocks,
            "tokens": result.tokens,
            "time_points": result.time_points,
            "eps": result.eps,
        }
        if result.by_eps:
            entry["by_eps"] = {f"{eps:g}": value for eps, value in result.by_eps.items()}
        if result.exact is not None:
            entry["exact"] = {"nats_per_token": result.exact[0], "stderr": result.exact[1]}
        return entry

    first, *_ = results.values()
    return {**figures(first), "bounds": {name: figures(result) for name, result in results.items()}}


def text_entry(judged: Judgement | None, varied: Diversity, samples: int) -> dict[str, Any]:
    """The JSON of a set of texts, generated or real. Without a judge its perplexities are null."""
    return {
        "ppl_mean_of_exp": None if judged is None else judged.ppl_mean_of_exp,
        "ppl_mean_of_exp_stderr": None if judged is None else judged.ppl_mean_of_exp_stderr,
        "ppl_token_mean": None if judged is None else judged.ppl_token_mean,
        "entropy_bits": varied.entropy_bits,
        "entropy_nats": varied.entropy_nats,
        "distinct": {str(order): share for order, share in varied.distinct.items()},
        "repetition": varied.repetition,
        "samples": samples,
    }


@dataclasses.dataclass(frozen=True)
class Report:
    """What `eval/step_N.json` holds.

    likelihood: corpus -> `likelihood_entry`. generation: `text_entry` of the samples, with that of real text under
    `real_text` and the sampler's settings under `settings`; empty if nothing was generated. missing: a sentence for
    each part that could not be evaluated. provenance: config, fingerprints, versions, seed, wall time.
    """

    run: str
    step: int
    likelihood: dict[str, dict[str, Any]]
    generation: dict[str, Any]
    missing: tuple[str, ...] = ()
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)


def write_report(workdir: str | os.PathLike, report: Report) -> pathlib.Path:
    """Writes eval/step_N.json and eval/report.md, each atomically, and returns the path of the JSON."""
    folder = pathlib.Path(workdir) / "eval"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{report.step}.json"
    files.write_json_atomically(path, _plain(dataclasses.asdict(report)))
    files.write_atomically(folder / "report.md", render_markdown(read_report(path)))
    return path


def as_filed(report: Report) -> Report:
    """The report as `read_report` gives it back: plain values, None for what is no number."""
    given = _plain(dataclasses.asdict(report))
    return Report(**{**given, "missing": tuple(given["missing"])})


def read_report(path: str | os.PathLike) -> Report:
    """Reads a report from its JSON. Raises WorldError if the file is not a report."""
    given = files.read_json(path)
    try:
        report = Report(**{**given, "missing": tuple(given["missing"])})
        render_markdown(report)
        return report
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise WorldError(f"{path}: expected an evaluation that this program wrote ({error})") from None


def newest_report(workdir: str | os.PathLike) -> Report:
    """Reads the report of the latest step in a run's folder. Raises WorldError if there is none."""
    steps = [path.stem.removeprefix("step_") for path in (pathlib.Path(workdir) / "eval").glob("step_*.json")]
    newest = max((int(step) for step in steps if step.isdecimal()), default=None)
    if newest is None:
        raise WorldError(
            f"compare = {workdir}: expected a run that was evaluated "
            f"({terminal.command({'mode': 'eval', 'workdir': workdir})})"
        )
    return read_report(pathlib.Path(workdir) / "eval" / f"step_{newest}.json")


def render_markdown(report: Report) -> str:
    """The report as Markdown."""
    config = report.provenance.get("config", {})
    source = config.get("flow", {}).get("source_distribution", "?")
    loss = str(config.get("flow", {}).get("loss_function", "?"))
    loss = BOUND_NAMES.get(loss, loss.replace("_", " "))
    first = next(iter(report.likelihood.values()), {})
    parts = [
        f"# {report.run}, step {report.step:,}",
        table(
            ["source", "loss", "generative perplexity", "exp(ELBO per token)"],
            [[source, loss, number(report.generation.get("ppl_mean_of_exp"), 1), number(first.get("perplexity"), 1)]],
        ),
    ]
    parts += [f"> **Missing:** {line}" for line in report.missing]
    if report.likelihood:
        parts += _likelihood_parts(report.likelihood)
    if report.generation:
        parts += _generation_parts(report.generation)
    known = {name: value for name, value in report.provenance.items() if name != "config" and value not in (None, {})}
    if known:
        parts += ["## Provenance", table(["", ""], [[name, _inline(value)] for name, value in known.items()])]
    return "\n\n".join(parts) + "\n"


def _likelihood_parts(likelihood: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows, tails = [], []
    for corpus, entry in likelihood.items():
        for name, bound in entry["bounds"].items():
            label = BOUND_NAMES.get(name, name)
            rows.append(
                [
                    corpus,
                    label,
                    PROCESSES.get(bound["process"], bound["process"]),
                    with_error(bound["nats_per_token"], bound["stderr"]),
                    number(bound["perplexity"], 2),
                    number(bound["bits_per_byte"], 4),
                    f"{bound['blocks']:,}",
                    f"{bound['time_points']:,}",
                ]
            )
            if "by_eps" in bound:
                exact = bound.get("exact")
                whole = "not finite" if exact is None else with_error(exact["nats_per_token"], exact["stderr"])
                tails.append([corpus, label, *(number(value, 4) for value in bound["by_eps"].values()), whole])
    first = next(iter(likelihood.values()))
    columns = ["corpus", "bound", "process", "nats/token", "perplexity", "bits/byte", "blocks", "time points"]
    parts = [
        "## Likelihood",
        "Upper bounds on -log p of the process named; ± is one standard error over blocks. The figure is the mean "
        f"integrand on kappa in [0, 1 - {first['eps']:g}] of the linear path, as the reference computes it; it does "
        "not depend on the schedule of the training.",
        table(columns, rows),
    ]
    if rows := _baseline_rows(likelihood):
        parts += [
            "The same texts without a network: by counts of the tokens of the training text, by counts of its pairs of "
            "tokens, and compressed. A model that has learned more than pairs is below the bigram.",
            table(["corpus", "baseline", "nats/token", "perplexity", "bits/byte"], rows),
        ]
    if tails:
        eps = [f"eps = {name}" for name in next(e for e in first["bounds"].values() if "by_eps" in e)["by_eps"]]
        parts += ["Nats per token for other ends of the interval:", table(["corpus", "bound", *eps, "up to 1"], tails)]
    return parts


def _baseline_rows(likelihood: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    return [
        [
            corpus,
            str(BASELINES.get(name, name)),
            number(known["nats_per_token"], 4),
            number(math.exp(known["nats_per_token"]), 2),
            number(known["bits_per_byte"], 4),
        ]
        for corpus, entry in likelihood.items()
        for name, known in entry.get("baselines", {}).items()
    ]


def _generation_parts(generation: Mapping[str, Any]) -> list[str]:
    def row(label: str, entry: Mapping[str, Any]) -> list[str]:
        return [
            label,
            with_error(entry["ppl_mean_of_exp"], entry["ppl_mean_of_exp_stderr"], 1),
            number(entry["ppl_token_mean"], 1),
            number(entry["entropy_bits"], 3),
            number(entry["entropy_nats"], 3),
            " / ".join(number(share, 3) for share in entry["distinct"].values()),
            number(entry["repetition"], 3),
            f"{entry['samples']:,}",
        ]

    rows = [row("samples", generation)]
    if generation.get("real_text"):
        rows.append(row("real text", generation["real_text"]))
    columns = ["", "perplexity (mean of exp)", "perplexity (token mean)", "entropy, bits", "entropy, nats"]
    settings = ", ".join(f"{name} {value}" for name, value in generation.get("settings", {}).items())
    spent = generation.get("evaluations")
    if spent:
        settings += f", {spent['evaluations']:.1f} evaluations a text"
    judge = generation.get("judge") or "none, config.eval.judge is empty"
    return [
        "## Generation",
        f"{settings}. Judge: {judge}." if settings else f"Judge: {judge}.",
        table([*columns, "distinct-1 / 2 / 3", "repetition", "texts"], rows),
        "*Mean of exp*: mean over texts of exp(mean next-token NLL), the reference's convention. *Token mean*: exp of "
        "the NLL averaged over all tokens up to the first end of text after decoding and re-tokenising, MDLM's and "
        "Duo's. *Entropy*: of each text's own token histogram, averaged. *Repetition*: share of 4-grams that are "
        "repeats. A low perplexity with an entropy below that of real text is repetition, not quality.",
        *(_mauve_parts(generation.get("mauve")) if generation.get("judge") else ()),
    ]


def _mauve_parts(mauve: Mapping[str, Any] | None) -> list[str]:
    if mauve is None:  # of an earlier version
        return []
    if mauve["value"] is None:
        return [f"MAUVE: none; {mauve.get('reason', 'it is no number')}."]
    generated, real = mauve["texts"]
    return [
        f"MAUVE: {number(mauve['value'], 3)}, from 0 to 1, of {generated:,} samples against {real:,} real texts, in "
        f"{mauve['clusters']:,} clusters of the judge's features (by {mauve['library']}). It depends on the number "
        "of texts: compare at one number only."
    ]


def compare(reports: Sequence[Report]) -> str:
    """Several reports as a Markdown table, one row each."""
    corpora = list(dict.fromkeys(corpus for report in reports for corpus in report.likelihood))
    bounds = {
        corpus: list(dict.fromkeys(name for r in reports for name in r.likelihood.get(corpus, {}).get("bounds", {})))
        for corpus in corpora
    }
    columns = ["run", "step", "source", "loss", "gen. ppl (mean of exp)", "gen. ppl (token mean)", "entropy, bits"]
    columns += [f"{corpus}: {BOUND_NAMES.get(name, name)}" for corpus in corpora for name in bounds[corpus]]
    rows = []
    for report in reports:
        config = report.provenance.get("config", {}).get("flow", {})
        row = [report.run, f"{report.step:,}", config.get("source_distribution", "?"), config.get("loss_function", "?")]
        row += [number(report.generation.get(name), 1) for name in ("ppl_mean_of_exp", "ppl_token_mean")]
        row.append(number(report.generation.get("entropy_bits"), 3))
        for corpus in corpora:
            for name in bounds[corpus]:
                bound = report.likelihood.get(corpus, {}).get("bounds", {}).get(name, {})
                row.append(with_error(bound.get("perplexity"), _perplexity_error(bound), 2))
        rows.append(row)
    return table(columns, rows)


def _perplexity_error(bound: Mapping[str, Any]) -> float | None:
    if bound.get("perplexity") is None or bound.get("stderr") is None:
        return None
    return bound["perplexity"] * bound["stderr"]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned in the source too."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in (columns, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(columns))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def number(value: float | None, digits: int) -> str:
    """`value` with `digits` decimals, or a dash for None and nan."""
    return "—" if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def with_error(value: float | None, error: float | None, digits: int = 4) -> str:
    """'value ± error', or only the value if the error is None or nan."""
    shown = number(value, digits)
    return shown if value is None or error is None or math.isnan(error) else f"{shown} ± {error:.{digits}f}"


def _inline(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _plain(value: Any) -> Any:
    """`value` with None for nan and inf, which JSON lacks, and lists for tuples."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
