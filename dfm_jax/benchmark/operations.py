"""Benchmarks of single operations: attention and vocabulary head, in every implementation that runs here."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from dfm_jax.benchmark.results import Row, per_second
from dfm_jax.benchmark.timing import Timing, measure
from dfm_jax.config import Config
from dfm_jax.experiment.problem import abstract, get_model_config
from dfm_jax.kernels import attention, vocab_head
from dfm_jax.runtime import compiler

TOKENS = 4096  # positions of one call, or one sequence where that is longer


def attend(config: Config, vocab_size: int) -> Iterator[Row]:
    """Forward, and forward with gradients."""
    model = get_model_config(config, vocab_size)
    shape = max(1, TOKENS // model.length), model.length, model.n_heads, model.head_dim
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, shape, jnp.dtype(model.compute_dtype)) for key in keys)
    product = 2 * shape[0] * shape[2] * shape[1] ** 2 * shape[3]
    note = f"{' x '.join(str(n) for n in shape)} {model.compute_dtype}"
    for name in attention.IMPLEMENTATIONS:
        platform = jax.default_backend()
        # On a processor a Pallas kernel is interpreted, which says nothing of its speed.
        if name == "pallas" and platform == "cpu":
            continue
        if attention.why_not(name, head_dim=model.head_dim, dtype=q.dtype) is not None:
            continue
        call = functools.partial(attention.attention, implementation=name)

        def loss(q: jax.Array, k: jax.Array, v: jax.Array, call=call) -> jax.Array:
            return call(q, k, v).astype(jnp.float32).sum()

        yield _rate("attention", f"{name} forward", 2 * product, _timed(call, q, k, v), note)
        gradient = jax.grad(loss, argnums=(0, 1, 2))
        yield _rate("attention", f"{name} forward and backward", 6 * product, _timed(gradient, q, k, v), note)


def head(config: Config, vocab_size: int) -> Iterator[Row]:
    """Log-probabilities at two ids per position, their gradients, and draws."""
    num_states = abstract(config, vocab_size).source.num_states
    model = get_model_config(config, num_states)
    width, padded = model.hidden_size, model.padded_vocab_size
    keys = jax.random.split(jax.random.key(0), 4)
    features = jax.random.normal(keys[0], (TOKENS, width), jnp.dtype(model.compute_dtype))
    kernel = jax.random.normal(keys[1], (width, padded)) / jnp.sqrt(jnp.float32(width))
    bias = jnp.zeros((padded,))
    ids = jax.random.randint(keys[2], (TOKENS, 2), 0, num_states, jnp.int32)
    product = 2 * TOKENS * width * padded
    note = f"{TOKENS} x {width} x {padded} {model.compute_dtype}"
    platform = jax.default_backend()
    for name in vocab_head.IMPLEMENTATIONS:
        # On a processor a loop stands for the Pallas kernels, which says nothing of their speed.
        if (name == "pallas" and platform == "cpu") or vocab_head.why_not(name, dtype=features.dtype) is not None:
            continue
        make = functools.partial(vocab_head.Head, num_valid=num_states, implementation=name)

        def log_probs(features: jax.Array, kernel: jax.Array, bias: jax.Array, make=make) -> jax.Array:
            return vocab_head.log_probs(make(kernel, bias), vocab_head.Query(ids), features).at_ids.sum()

        def draw(features: jax.Array, kernel: jax.Array, bias: jax.Array, make=make) -> jax.Array:
            return vocab_head.sample(make(kernel, bias), vocab_head.Query(), features, keys[3])

        given = features, kernel, bias
        yield _rate("head", f"{name} log-probabilities", product, _timed(log_probs, *given), note)
        gradient = jax.value_and_grad(log_probs, argnums=(0, 1, 2))
        yield _rate("head", f"{name} with gradients", 3 * product, _timed(gradient, *given), note)
        if name != "pallas":  # draws have no kernel of their own
            yield per_second("head", f"{name} draws", TOKENS, _timed(draw, *given), "tokens/s", note)


def _timed(function, *arguments: jax.Array) -> Timing:
    compiled = compiler.jit(function, mesh=None)
    return measure(lambda: compiled(*arguments))


def _rate(benchmark: str, what: str, work: float, timing: Timing, note: str) -> Row:
    return per_second(benchmark, what, work / 1e9, timing, "GFLOP/s", f"{timing.median * 1e3:.3g} ms; {note}")


OPERATIONS = {"attention": attend, "head": head}
