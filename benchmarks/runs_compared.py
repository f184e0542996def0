"""What benchmarks that compare small runs share: training by the command line's parser, text to judge by, errors.

Samples are scored by an interpolated n-gram model of the training text. It knows nothing of the models that are
compared, it is the same for all, and it needs no download; it punishes what the training text never has.
"""

import collections
import copy
import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from dfm_jax import cli
from dfm_jax import config as configs
from dfm_jax.checkpoints.store import Checkpoints
from dfm_jax.cli import command_line
from dfm_jax.data import get_tokenizer
from dfm_jax.evaluation.generation import Generator
from dfm_jax.evaluation.settings import EvaluationSettings
from dfm_jax.experiment import streams as corpora
from dfm_jax.run.load import Run

CONFIG = "configs/quickstart.py"
ORDER = 5
# What every compared run sets if it does not say otherwise: source and optimizer, no evaluation, no checkpoint but the
# last, and one process that reads data.
BARE: dict[str, object] = {
    "flow.source_distribution": "uniform",
    "optim.name": "adamw",
    "optim.lr": 3e-3,
    "optim.eta_min_ratio": 0.1,
    "optim.ema_decay": 0.0,
    "eval.elbo": False,
    "eval.perplexity": False,
    "training.snapshot": 0,
    "training.eval_freq": 0,
    "data.num_workers": 1,
}


class Judge:
    """Witten-Bell interpolation of the n-grams of a text of ids, up to `order` ids."""

    def __init__(self, text: Sequence[int], vocab_size: int, order: int = ORDER):
        self.vocab_size, self.order = vocab_size, order
        self.counts = [collections.defaultdict(collections.Counter) for _ in range(order)]
        for n, table in enumerate(self.counts):
            for i in range(n, len(text)):
                table[tuple(text[i - n : i])][text[i]] += 1
        self.totals = [{context: sum(c.values()) for context, c in table.items()} for table in self.counts]

    def __call__(self, ids: Sequence[int]) -> float:
        """Nats per token of what follows the first order - 1."""
        nats = 0.0
        for i in range(self.order - 1, len(ids)):
            p = 1 / self.vocab_size
            for n, table in enumerate(self.counts):
                context = tuple(ids[i - n : i])
                if total := self.totals[n].get(context):
                    share = total / (total + len(table[context]))
                    p = share * table[context][ids[i]] / total + (1 - share) * p
            nats -= math.log(p)
        return nats / (len(ids) - self.order + 1)

    def law(self, context: Sequence[int]) -> np.ndarray:
        """(V,) float64: of the id after `context`, any number of ids."""
        p = np.full(self.vocab_size, 1 / self.vocab_size)
        for n, table in enumerate(self.counts[: len(context) + 1]):
            seen = tuple(context[len(context) - n :])
            if total := self.totals[n].get(seen):
                share = total / (total + len(table[seen]))
                p *= 1 - share
                ids, counts = zip(*table[seen].items(), strict=True)
                p[list(ids)] += share * np.array(counts) / total
        return p

    def lower(self, order: int) -> "Judge":
        """The judge with n-grams up to `order` ids only, at no cost."""
        judge = copy.copy(self)
        judge.order, judge.counts, judge.totals = order, self.counts[:order], self.totals[:order]
        return judge


def entropy(ids: np.ndarray) -> float:
    """Of the ids within a sequence, nats."""
    share = np.unique(ids, return_counts=True)[1] / len(ids)
    return float(-(share * np.log(share)).sum())


def score(judge: Judge, sequences: np.ndarray) -> dict[str, float]:
    """Means over sequences (n, L): nats per token by the judge, and the entropy of the tokens within a sequence."""
    nats = [judge(row.tolist()) for row in sequences]
    return {"nats": float(np.mean(nats)), "entropy": float(np.mean([entropy(row) for row in sequences]))}


@dataclasses.dataclass(frozen=True)
class Text:
    """The corpus of CONFIG as ids: all of the training text, and blocks (n, length) of the held-out text."""

    train: np.ndarray
    held_out: np.ndarray
    vocab_size: int

    @functools.cached_property
    def judge(self) -> Judge:
        return Judge(self.train.tolist(), self.vocab_size)


def read_text(blocks: int, config: configs.Config | None = None) -> Text:
    """A config's text, that of CONFIG by default, with `blocks` held-out blocks from all over it, in an order of no
    meaning."""
    config = configs.freeze(configs.load_file(CONFIG)) if config is None else config
    tokenizer = get_tokenizer(config.tokenizer.name)
    train, valid = (corpora.get_stream(config, f"data.{field}", tokenizer) for field in ("train", "valid"))
    every = valid.blocks(config.model.length)
    chosen = np.linspace(0, len(every) - 1, blocks).astype(int)
    order = np.random.default_rng(0).permutation(blocks)
    held_out = np.stack([np.asarray(every[i], np.int32) for i in chosen])[order]
    return Text(np.asarray(train.read(0, train.num_tokens)), held_out, tokenizer.vocab_size)


def generator(run: Run, rows: int, mesh: Mesh | None = None, **changes: Any) -> Generator:
    """The run's sampler with other settings (fields of `SamplingSettings`), `rows` texts a batch. It compiles once."""
    settings = EvaluationSettings.from_config(run.config, run.tokenizer.vocab_size).sampling
    return Generator(run.problem, dataclasses.replace(settings, **changes), rows, mesh)


def train(folder: pathlib.Path, changes: Mapping[str, object]) -> None:
    """`--mode=train` of CONFIG with `changes` (a field's full name -> value) in `folder`; a finished run stays.

    Raises SystemExit where the run did not come to its end, as after a signal: then there is nothing to judge.
    """
    flags = [f"--config.{field}={value}" for field, value in changes.items()]
    command = command_line.parse(["main.py", "--mode=train", f"--config={CONFIG}", f"--workdir={folder}", *flags])
    status = cli.run(command)
    if status != 0 or Checkpoints(folder / "checkpoints").latest_step() != command.config.optim.n_iters:
        raise SystemExit(status or f"{folder}: stopped before its end; the same command continues")


def mean_and_error(values: Sequence[float], digits: int = 3) -> str:
    """'mean ± standard error' over runs; one run has no error, and its figure stands alone."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1) / math.sqrt(len(values)):.{digits}f}"
