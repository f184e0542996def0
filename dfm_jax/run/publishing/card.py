"""The model card of a published run: what it is, what it was trained on, its figures, texts of it, how to load it."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from dfm_jax.checkpoints.published import hub
from dfm_jax.checkpoints.store import Checkpoints
from dfm_jax.evaluation.report.markdown import read_report, render_markdown, table
from dfm_jax.models.transformer import count_parameters
from dfm_jax.run.load import Run

_TEXTS, _STEPS = 2, 64  # that are drawn for the card, with at most so many steps
_LONGEST = 1000  # characters of a text that are shown


def write(run: Run, name: str, license: str) -> str:
    """The card, Markdown after a header that the hub reads. name: OWNER/NAME or the folder's. license: an id."""
    title = name.rsplit("/", 1)[-1]
    parts = [_header(license), f"# {title}", _about(run), "## Training", _training(run), "## Figures", _figures(run)]
    return "\n\n".join([*parts, "## Texts", _texts(run), "## Use", _use(run, name)]) + "\n"


def _header(license: str) -> str:
    lines = ["---", f"license: {json.dumps(license)}", "library_name: dfm_jax", "tags:"]
    return "\n".join([*lines, "- discrete-flow-matching", "- discrete-diffusion", "- jax", "---"])


def _about(run: Run) -> str:
    config, model = run.config, run.model.config
    told = {"t": "t", "kappa": "kappa", "sigma": f"sigma = -log kappa, at most {config.model.largest_sigma:g}"}
    time = told[config.model.time_input] if model.time_conditioning else "nothing"
    rows = [
        ["parameters", f"{count_parameters(model):,}"],
        ["network", f"{model.n_blocks} blocks of width {model.hidden_size}, {model.n_heads} heads"],
        ["length", f"{model.length} tokens"],
        ["tokenizer", f"`{config.tokenizer.name}`, {run.tokenizer.vocab_size:,} ids"],
        ["path", f"{config.flow.path} from the {config.flow.source_distribution} source"],
        ["scheduler", f"{config.flow.scheduler_type}, exponent {config.flow.exponent:g}"],
        ["logits", f"{config.model.parametrization}; the network is told {time}"],
    ]
    return f"A network for discrete flow matching on text, made by `dfm_jax`.\n\n{table(['', ''], rows)}"


def _training(run: Run) -> str:
    config = run.config
    saved = _metadata(run)
    tokens = run.step * config.training.batch_size * config.model.length
    rows = []
    if origin := saved.get("origin"):
        where, _, layout = str(origin).partition(", layout ")
        where = where if hub.is_name(where) else pathlib.Path(where).name
        rows.append(["begun from", f"{where}, layout {layout}" if layout else where])
    if run.step:
        rows += [
            ["data", f"{_without_folder(config.data.train)}, rows {config.data.packing}"],
            ["fingerprint of its tokens", str(saved.get("fingerprint", "?"))],
            ["updates", f"{run.step:,} of {config.training.batch_size} rows ({tokens:,} tokens)"],
            ["loss", config.flow.loss_function],
            [
                "optimizer",
                f"{config.optim.name}, peak rate {config.optim.lr:g}, weight decay {config.optim.weight_decay:g}",
            ],
        ]
    else:
        rows.append(["updates", "none by dfm_jax"])
    averaged = " The weights are an average over updates." if config.optim.ema_decay else ""
    return f"{table(['', ''], rows)}\n\nThe whole config is in `config.json`.{averaged}"


def _without_folder(corpus: str) -> str:
    """A corpus's name; of a path from the root its last part, as the rest says nothing to others."""
    path = pathlib.Path(corpus)
    return path.name if path.is_absolute() else corpus


def _figures(run: Run) -> str:
    """The evaluation of this step, without its own title."""
    path = run.folder / "eval" / f"step_{run.step}.json"
    if not path.is_file():
        return f"Not evaluated at step {run.step:,}."
    report = render_markdown(read_report(path)).split("\n\n", 1)[1].replace("\n## ", "\n### ")
    rows = run.config.data.packing
    return f"Of rows of {run.config.model.length} tokens, form `{rows}`.\n\n{report.strip()}"


def _texts(run: Run) -> str:
    steps = min(_STEPS, run.config.sampling.steps or run.config.flow.sampling_steps)
    texts = run.sample(_TEXTS, steps=steps, seed=0)
    shown = [_printable(text[:_LONGEST].strip()) for text in texts]
    fence = "```"
    while any(fence in text for text in shown):
        fence += "`"
    said = f"Drawn with {steps} steps of `{run.config.sampling.method}`, seed 0, not chosen:"
    return "\n\n".join([said, *(f"{fence}text\n{text}\n{fence}" for text in shown)])


def _printable(text: str) -> str:
    """`text` with U+FFFD in the place of control characters, which tokens of single bytes may give."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def _use(run: Run, name: str) -> str:
    where = f"hf:{name}" if "/" in name else name
    lines = ["import dfm_jax", "", f'run = dfm_jax.load("{where}")', "print(run.sample(1, steps=64)[0])"]
    return "```python\n" + "\n".join(lines) + "\n```"


def _metadata(run: Run) -> Mapping[str, Any]:
    folder = pathlib.Path(run.folder) / "checkpoints"
    return Checkpoints(folder).metadata(run.step) if folder.is_dir() else {}
