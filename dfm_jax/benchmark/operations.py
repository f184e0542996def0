"""Benchmarks of single operations: attention and vocabulary head, in every implementation that runs here."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from dfm_jax.benchmark.results import Missing, Row, in_one_line, per_second
from dfm_jax.benchmark.timing import Timing, measure
from dfm_jax.config import Config
from dfm_jax.experiment.problem import abstract, get_model_config
from dfm_jax.kernels import attention, vocab_head
from dfm_jax.runtime import compiler

# Positions of one call, or one sequence where that is longer. A GPU needs as many as a training step has: with fewer, a
# call is over before the host has queued the next.
TOKENS = {"cpu": 4096, "other": 65536}


def positions() -> int:
    return TOKENS["cpu" if jax.default_backend() == "cpu" else "other"]


def attend(config: Config, vocab_size: int) -> Iterator[Row | Missing]:
    """Forward, and forward with gradients."""
    model = get_model_config(config, vocab_size)
    shape = max(1, positions() // model.length), model.length, model.n_heads, model.head_dim
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, dout = (jax.random.normal(key, shape, jnp.dtype(model.compute_dtype)) for key in keys)
    product = 2 * shape[0] * shape[2] * shape[1] ** 2 * shape[3]
    note = f"{' x '.join(str(n) for n in shape)} {model.compute_dtype}"
    for name in attention.IMPLEMENTATIONS:
        call = functools.partial(attention.attention, implementation=name)

        def both(q: jax.Array, k: jax.Array, v: jax.Array, call=call):
            # The cotangent is drawn: with ones the compiler would turn products into sums.
            out, pullback = jax.vjp(call, q, k, v)
            return out, pullback(dout)

        def rows(name=name, call=call, both=both) -> Iterator[Row]:
            yield _rate("attention", f"{name} forward", 2 * product, _timed(call, q, k, v), note)
            yield _rate("attention", f"{name} forward and backward", 6 * product, _timed(both, q, k, v), note)

        reason = attention.why_not(name, head_dim=model.head_dim, dtype=q.dtype)
        yield from _or_missing(rows, "attention", name, reason)


def head(config: Config, vocab_size: int) -> Iterator[Row | Missing]:
    """Log-probabilities at two ids per position, their gradients, and draws."""
    num_states = abstract(config, vocab_size).source.num_states
    model = get_model_config(config, num_states)
    width, padded, count = model.hidden_size, model.padded_vocab_size, positions()
    keys = jax.random.split(jax.random.key(0), 4)
    features = jax.random.normal(keys[0], (count, width), jnp.dtype(model.compute_dtype))
    kernel = jax.random.normal(keys[1], (width, padded)) / jnp.sqrt(jnp.float32(width))
    bias = jnp.zeros((padded,))
    ids = jax.random.randint(keys[2], (count, 2), 0, num_states, jnp.int32)
    product = 2 * count * width * padded
    note = f"{count} x {width} x {padded} {model.compute_dtype}"
    given = features, kernel, bias
    for name in vocab_head.IMPLEMENTATIONS:
        make = functools.partial(vocab_head.Head, num_valid=num_states, implementation=name)

        def log_probs(features: jax.Array, kernel: jax.Array, bias: jax.Array, make=make) -> jax.Array:
            return vocab_head.log_probs(make(kernel, bias), vocab_head.Query(ids), features).at_ids.sum()

        def draw(features: jax.Array, kernel: jax.Array, bias: jax.Array, make=make) -> jax.Array:
            return vocab_head.sample(make(kernel, bias), vocab_head.Query(), features, keys[3])

        def rows(name=name, log_probs=log_probs, draw=draw) -> Iterator[Row]:
            yield _rate("head", f"{name} log-probabilities", product, _timed(log_probs, *given), note)
            gradient = jax.value_and_grad(log_probs, argnums=(0, 1, 2))
            yield _rate("head", f"{name} with gradients", 3 * product, _timed(gradient, *given), note)
            if name != "pallas":  # draws have no kernel of their own
                yield per_second("head", f"{name} draws", count, _timed(draw, *given), "tokens/s", note)

        yield from _or_missing(rows, "head", name, vocab_head.why_not(name, dtype=features.dtype))


def _or_missing(
    rows: Callable[[], Iterator[Row]], benchmark: str, name: str, reason: str | None
) -> Iterator[Row | Missing]:
    """The rows of one implementation up to the first that fails, and then why: the others are still measured.

    reason: why it cannot run here, or None.
    """
    if reason is None and name == "pallas" and jax.default_backend() == "cpu":
        reason = "on a processor the kernels are interpreted, which says nothing of their speed"
    if reason is not None:
        yield Missing(f"{benchmark} {name}", reason)
        return
    try:
        yield from rows()
    except Exception as error:  # out of memory, or a compiler that refuses: any of many types
        yield Missing(f"{benchmark} {name}", in_one_line(error))


def _timed(function: Callable[..., Any], *arguments: jax.Array) -> Timing:
    compiled = compiler.jit(function, mesh=None)
    return measure(lambda: compiled(*arguments))


def _rate(benchmark: str, what: str, work: float, timing: Timing, note: str) -> Row:
    return per_second(benchmark, what, work / 1e9, timing, "GFLOP/s", f"{timing.median * 1e3:.3g} ms; {note}")


OPERATIONS = {"attention": attend, "head": head}
