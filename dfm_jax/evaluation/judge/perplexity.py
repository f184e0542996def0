"""Generative perplexity: how likely samples are under GPT-2, in the two conventions that papers use."""

import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dfm_jax.data import Tokenizer
from dfm_jax.evaluation.judge.gpt2 import GPT2, check_gpt2, find_gpt2, load_gpt2
from dfm_jax.runtime import compiler
from dfm_jax.runtime.errors import WorldError

WIDTHS = 64


class Judgement(NamedTuple):
    """Perplexities of one set of samples under the judge.

    Attributes:
        ppl_mean_of_exp: the mean over samples of exp(mean next-token NLL of the whole sample), as in the reference.
        ppl_mean_of_exp_stderr: its standard error over samples (nan for one sample).
        ppl_token_mean: exp of the mean NLL over all tokens up to each sample's first end of text, after
            decoding and re-tokenising, as in MDLM and Duo.
        samples: how many samples were judged, each exactly once.
        tokens: how many tokens the second figure averages over.
    """

    ppl_mean_of_exp: float
    ppl_mean_of_exp_stderr: float
    ppl_token_mean: float
    samples: int
    tokens: int


def _nll_sums(model: GPT2, tokens: jax.Array, weights: jax.Array) -> jax.Array:
    # Without this a GPU would round float32 products to 10 bits of mantissa.
    with jax.default_matmul_precision("float32"):
        return -(model.next_token_log_probs(tokens) * weights).sum(axis=1)


def _last_features(model: GPT2, tokens: jax.Array, last: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("float32"):
        return jnp.take_along_axis(model.features(tokens), last[:, None, None], axis=1)[:, 0]


class Judge:
    """Judges samples with a GPT-2, in batches.

    Args:
        model: the language model.
        tokenizer: the judge's own tokenizer.
        batch_size: samples per forward pass, over the whole mesh.
        mesh: the devices that share a batch along all mesh axes; batch_size must be a multiple of their number.
        deterministic: compiled for the same bits in every run, see `runtime.compiler`.
    """

    def __init__(
        self,
        model: GPT2,
        tokenizer: Tokenizer,
        *,
        batch_size: int = 16,
        mesh: Mesh | None = None,
        deterministic: bool = False,
    ):
        if mesh is not None and batch_size % mesh.size:
            raise ValueError(f"eval.perplexity_batch_size = {batch_size}: expected a multiple of {mesh.size} devices")
        self.tokenizer, self.batch_size = tokenizer, batch_size
        self._rows: NamedSharding | None = None
        self._copy: NamedSharding | None = None
        if mesh is not None:
            self._rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
            self._copy = NamedSharding(mesh, PartitionSpec())
        self.model = _place(model, self._copy)
        # Every process gets a copy of the result.
        self._sums = compiler.jit(
            _nll_sums, out_shardings=self._copy, mesh=mesh, communicates=False, deterministic=deterministic
        )

        self._features = compiler.jit(
            _last_features, out_shardings=self._copy, mesh=mesh, communicates=False, deterministic=deterministic
        )

    def features(self, samples: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
        """The final features (N, n_embd) float32 at the last token of each of samples (N, L), as text of the judge's.

        Raises ValueError as a call does.
        """
        tokens, counted = self._as_judged(samples, tokenizer)
        return self._rowwise(self._features, tokens, counted.sum(axis=1).astype(np.int32), np.float32)

    def nll_sums(self, tokens: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Weighted sums of next-token NLL in nats: (N, L) tokens, (N, L - 1) weights -> (N,) float64.

        The last batch is filled up with rows that are computed and dropped. Raises ValueError for ids outside the
        judge's vocabulary.
        """
        width = self._width(tokens)
        weights = np.pad(weights, ((0, 0), (0, width - tokens.shape[1])))
        return self._rowwise(self._sums, tokens, weights.astype(np.float32), np.float64)

    def _width(self, tokens: np.ndarray) -> int:
        """Few widths, so that few programs are compiled. Causal attention ignores the padding."""
        return min(-(-tokens.shape[1] // WIDTHS) * WIDTHS, self.model.config.n_positions)

    def _rowwise(self, program: Callable, tokens: np.ndarray, of_rows: np.ndarray, dtype: Any) -> np.ndarray:
        """The program's answer for each row, in batches, with what belongs to the rows (N, ...)."""
        vocab_size = self.model.config.vocab_size
        if tokens.min(initial=0) < 0 or tokens.max(initial=0) >= vocab_size:
            raise ValueError(f"token {tokens.max()}: expected ids in [0, {vocab_size}), the judge's vocabulary")
        tokens = np.pad(tokens, ((0, 0), (0, self._width(tokens) - tokens.shape[1])))
        found = []
        for rows in _batches(len(tokens), self.batch_size):
            batch = _place(tokens[rows].astype(np.int32), self._rows)
            answer = program(self.model, batch, _place(of_rows[rows], self._rows))
            found.append(np.asarray(answer, dtype))
        return np.concatenate(found)[: len(tokens)] if found else np.zeros(0, dtype)

    def __call__(self, samples: np.ndarray, tokenizer: Tokenizer) -> Judgement:
        """Judges samples (N, L) of `tokenizer`'s ids.

        If the samples have another vocabulary than the judge, they are decoded and re-tokenised for both figures.

        Raises:
            ValueError: no sample, a sample of fewer than two tokens, or ids outside the vocabulary.
        """
        whole, counted = self._as_judged(samples, tokenizer)
        counts = counted.sum(axis=1)
        perplexities = np.exp(self.nll_sums(whole, counted) / counts)
        several = len(samples) > 1
        stderr = perplexities.std(ddof=1) / np.sqrt(len(samples)) if several else np.nan

        texts, counted = self._translate([first_text(row, tokenizer.eos_id) for row in samples], tokenizer)
        total = int(counted.sum())
        token_mean = np.exp(self.nll_sums(texts, counted).sum() / total) if total else np.nan
        return Judgement(float(perplexities.mean()), float(stderr), float(token_mean), len(samples), total)

    def _as_judged(self, samples: np.ndarray, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
        """Samples (N, L) as rows of the judge's ids, and which of their targets are real, as `_translate` has them."""
        if samples.ndim != 2 or len(samples) == 0:
            raise ValueError(f"samples of shape {samples.shape}: expected (N, L) with N >= 1")
        if tokenizer.name == self.tokenizer.name:
            longest = self.model.config.n_positions
            whole, counted = samples[:, :longest], np.ones(samples[:, 1:longest].shape, bool)
        else:
            whole, counted = self._translate(list(samples), tokenizer)
        counts = counted.sum(axis=1)
        if counts.min() == 0:
            raise ValueError(f"sample {counts.argmin()}: expected at least two tokens of the judge's")
        return whole, counted

    def _translate(self, rows: list[np.ndarray], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
        """Translates rows of `tokenizer`'s ids to the judge's ids (N, L'), and marks real targets (N, L' - 1), bool.

        The texts between ends of text are decoded and encoded one by one. An end of text then stays one token of the
        judge and is not spelled out.
        """
        end = self.tokenizer.eos_id
        translated = []
        for row in rows:
            texts = np.split(row, np.flatnonzero(row == tokenizer.eos_id))
            ids: list[int] = []
            for number, text in enumerate(texts):
                ids.extend([end] * (number > 0))
                ids.extend(self.tokenizer.encode_batch([tokenizer.decode(text[number > 0 :])])[0])
            translated.append(ids[: self.model.config.n_positions])
        lengths = np.asarray([len(ids) for ids in translated])
        tokens = np.full((len(rows), max(2, *lengths)), end, np.int32)
        for number, ids in enumerate(translated):
            tokens[number, : len(ids)] = ids
        return tokens, np.arange(1, tokens.shape[1])[None] < lengths[:, None]


def first_text(sample: np.ndarray, eos_id: int) -> np.ndarray:
    """The sample (L,) up to its first end of text, inclusive. An end of text at index 0 only begins the text."""
    ends = np.flatnonzero(sample[1:] == eos_id)
    return sample[: ends[0] + 2] if len(ends) else sample


def _batches(count: int, batch_size: int) -> Iterator[np.ndarray]:
    """Yields indices in batches of exactly `batch_size`. The last batch is filled up with row 0."""
    for start in range(0, count, batch_size):
        rows = np.arange(start, start + batch_size)
        yield np.where(rows < count, rows, 0)


def _place(tree, sharding: NamedSharding | None):
    if sharding is None:
        return jax.tree.map(jnp.asarray, tree)
    # Every process has the whole array and gives its devices their part.
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: np.asarray(x)[index]), tree
    )


def find_judge(name: str, vocab_size: int) -> pathlib.Path:
    """The folder of the GPT-2 called `name` (a folder or a hub name), downloaded where it is not here; reads no tensor.

    vocab_size: of the judge's tokenizer.

    Raises:
        WorldError: its files are not here and cannot be had, or are of another model; the line says which.
    """
    try:
        folder = find_gpt2(name)
        check_gpt2(folder, vocab_size)
    except (OSError, ValueError) as error:
        raise WorldError(
            f"config.eval.judge = {name}: expected a GPT-2, or --config.eval.judge= for none; "
            f"{' '.join(str(error).split())}"
        ) from error
    return folder


@functools.lru_cache(maxsize=1)
def load_judge(name: str, dtype: str = "float32") -> GPT2:
    """The GPT-2 called `name` (a folder or a hub name), read once per process.

    Raises:
        WorldError: its files are not here and cannot be downloaded. The error says how to get them.
    """
    try:
        return load_gpt2(find_gpt2(name), dtype)
    except (FileNotFoundError, ValueError) as error:
        raise WorldError(f"config.eval.judge = {name}: expected {error}") from error
