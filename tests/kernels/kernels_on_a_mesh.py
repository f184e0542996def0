"""Run in its own process by test_vocab.py: the vocabulary head and attention in shard_map on 8 simulated devices."""

import os

# Threads for every collective that simulated devices may be in at once: they wait in them, on as many threads as cores.
os.environ["NPROC"] = "16"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from kernels import vocab_head
from kernels.attention import attention

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

BATCH, LENGTH, WIDTH, STORED, VALID, SUPPRESS = 8, 6, 16, 1024, 901, 7
rng = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


features, kernel, bias = normal(BATCH, LENGTH, WIDTH), normal(WIDTH, STORED), normal(STORED)
ids = jnp.asarray(rng.integers(8, VALID, (BATCH, LENGTH, 3)), jnp.int32).at[..., 1].set(900)
shift_ids, amounts = ids[..., 0], normal(BATCH, LENGTH)
weights, inner = jnp.abs(normal(STORED)), jnp.abs(normal(STORED))
scale = jnp.abs(normal(BATCH, LENGTH))
keys = jax.random.split(jax.random.key(0), (BATCH, LENGTH))
operands = (features, kernel, bias, amounts, weights, inner, scale)


def answers(kind, implementation, axis_name, ids, shift_ids, features, kernel, bias, amounts, weights, inner, scale):
    reduction = None
    if kind is not None:
        extra = {"scale": scale, "inner": inner} if kind == "log1p" else {}
        reduction = vocab_head.Reduction(kind, weights, **extra)
    head = vocab_head.Head(
        kernel, bias, num_valid=VALID, axis_name=axis_name, implementation=implementation,
        block_rows=None if implementation == "dense" else 4,
    )  # fmt: skip
    query = vocab_head.Query(ids, amounts, shift_ids, SUPPRESS, reduction)
    return vocab_head.log_probs(head, query, features)


def total(answer):
    """A function of every output whose cotangents differ from row to row."""
    out = jnp.sin(answer.at_ids).sum() + jnp.square(answer.log_sum_exp).sum()
    return out if answer.reduced is None else out + jnp.sin(answer.reduced).sum()


def check(mesh, kind, implementation):
    data, tensor = P(("data", "fsdp")), "tensor" if mesh.shape["tensor"] > 1 else None
    specs = (data, P(None, tensor), P(tensor), data, P(tensor), P(tensor), data)

    @jax.jit
    def sharded(*operands):
        def mapped(ids, shift_ids, *operands):
            return answers(kind, implementation, tensor, ids, shift_ids, *operands)

        run = jax.shard_map(mapped, mesh=mesh, in_specs=(data, data, *specs), out_specs=data)
        answer = run(ids, shift_ids, *operands)
        return total(answer), answer

    @jax.jit
    def dense(*operands):
        answer = answers(kind, "dense", None, ids, shift_ids, *operands)
        return total(answer), answer

    placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(operands, specs, strict=True)]
    found, wanted = (
        jax.jit(jax.value_and_grad(f, argnums=range(len(operands)), has_aux=True))(*arrays)
        for f, arrays in ((sharded, placed), (dense, operands))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), found, wanted)

    def draws(tensor, ids, keys, features, kernel, bias):
        head = vocab_head.Head(kernel, bias, num_valid=VALID, axis_name=tensor)
        asked = head, vocab_head.Query(suppress=SUPPRESS), features
        return (
            vocab_head.sample(*asked, keys, temperature=0.7),
            vocab_head.sample(*asked, keys, top_p=0.5),
            vocab_head.argmax(*asked),
            vocab_head.draw(
                head, vocab_head.Query(ids, suppress=SUPPRESS), features, keys,
                top_p=0.5, asked=frozenset({"log_prob", "top_two", "entropy", "at_ids"}),
            ),
        )  # fmt: skip

    run = jax.shard_map(
        lambda *args: draws(tensor, *args), mesh=mesh, in_specs=(data, data, *specs[:3]), out_specs=(data,) * 4
    )
    found, wanted = jax.jit(run)(ids, keys, *placed[:3]), draws(None, ids, keys, *operands[:3])
    for a, b in zip((*found[:3], found[3].token), (*wanted[:3], wanted[3].token), strict=True):
        np.testing.assert_array_equal(a, b)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found[3], wanted[3])


def check_law(mesh):
    """Shards that are no multiple of the draw's group of 128: other tokens for the same words, the same law."""
    logits = rng.normal(size=320) * 2
    probs = np.where(np.arange(320) < 300, np.exp(logits), 0)
    probs /= probs.sum()
    zeros, law = jnp.zeros((1, 20000, 1)), jnp.asarray(logits, jnp.float32)
    head = vocab_head.Head(jnp.zeros((1, 320)), law, num_valid=300, axis_name="tensor")
    run = jax.shard_map(
        lambda head, x: vocab_head.sample(head, vocab_head.Query(), x, jax.random.key(1)),
        mesh=mesh,
        in_specs=(head.specs("tensor"), P()),
        out_specs=P(),
    )
    counts = np.bincount(np.asarray(jax.jit(run)(head, zeros)).ravel(), minlength=320)
    assert counts[300:].sum() == 0
    expected = 20000 * probs[:300]
    chi_square = ((counts[:300] - expected) ** 2 / expected).sum()
    assert abs(chi_square - 299) < 4 * np.sqrt(2 * 299), chi_square


def check_attention(mesh):
    """The interpreted kernel with batch and heads split, plain and with rotary tables."""
    q, k, v, dout = (normal(8, 10, 4, 32) for _ in range(4))
    split = {"mesh": mesh, "batch_axes": ("data", "fsdp"), "head_axis": "tensor"}

    def run(options):
        out, pullback = jax.vjp(lambda *x: attention(*x, **options), q, k, v)
        return out, pullback(dout)

    angles = normal(10, 16)
    for rotary in (None, (jnp.cos(angles), jnp.sin(angles))):
        found = jax.jit(lambda rotary: run({"implementation": "pallas", "rotary": rotary, **split}))(rotary)
        wanted = run({"implementation": "xla", "rotary": rotary})
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, wanted)


def check_partitioned(mesh):
    """Without shard_map, the compiler's own partitioning: right as well, and rows stay on their devices."""
    placed = jax.device_put(features, NamedSharding(mesh, P(("data", "fsdp"))))

    def f(x):
        return total(answers(None, "blocks", None, ids, shift_ids, x, *operands[1:]))

    found = jax.jit(f).lower(placed).compile()
    np.testing.assert_allclose(found(placed), f(features), rtol=1e-5)
    assert "all-gather" not in found.as_text()
    assert "all-to-all" not in found.as_text()


if __name__ == "__main__":
    for shape, kind in (((4, 2, 1), "log1p"), ((2, 1, 4), "log1p"), ((1, 1, 8), "linear"), ((1, 4, 2), None)):
        for implementation in ("blocks", "pallas"):
            check(
                jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3), kind, implementation
            )
    check_law(jax.make_mesh((1, 2, 4), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3))
    check_attention(jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3))
    check_partitioned(jax.make_mesh((8, 1, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3))
    print("ok")
