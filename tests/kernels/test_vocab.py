"""Every implementation of the vocabulary head against the dense definition in float64, values and gradients."""

import dataclasses
import functools
import itertools
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import programs
from kernels import vocab_head
from kernels.target import Target

WIDTH, SUPPRESS = 16, 7
ROWS = ((37,), (2, 3, 5))  # neither is a multiple of the blocks


def problem(rows, columns, num_valid, k, seed=0, size=1.0):
    """(arrays that are differentiated, arrays that are not) as float64 numpy."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(SUPPRESS + 1, num_valid, (*rows, k)).astype(np.int32)
    ids[..., -1] = ids[..., 0]  # duplicates
    shift_ids = np.where(rng.random(rows) < 0.5, ids[..., 0], rng.integers(0, num_valid, rows)).astype(np.int32)
    amounts = rng.normal(size=rows) * 3
    # One row per axis loses its token: at an id which that row does not ask for.
    flat = amounts.reshape(-1)
    flat[1], shift_ids.reshape(-1)[1] = -np.inf, SUPPRESS - 1
    floats = (
        rng.normal(size=(*rows, WIDTH)) * size,
        rng.normal(size=(WIDTH, columns)),
        rng.normal(size=columns),
        amounts,
        rng.uniform(size=num_valid),
        np.exp(rng.normal(size=rows)),
        rng.uniform(size=num_valid),
    )
    return floats, (ids, shift_ids)


def call(floats, integers, *, kind, with_shift, num_valid, implementation, block_rows=None):
    features, kernel, bias, amounts, weights, scale, inner = floats
    ids, shift_ids = integers
    reduction = None
    if kind is not None:
        reduction = vocab_head.Reduction(kind, weights, *((scale, inner) if kind == "log1p" else ()))
    head = vocab_head.Head(kernel, bias, num_valid=num_valid, implementation=implementation, block_rows=block_rows)
    shift = (amounts, shift_ids) if with_shift else (None, None)
    return vocab_head.log_probs(head, vocab_head.Query(ids, *shift, SUPPRESS, reduction), features)


def objective(floats, integers, **options):
    """Cotangents that differ from row to row and have a part from every output."""
    answer = call(floats, integers, **options)
    at_ids = answer.at_ids
    row = jnp.cos(jnp.arange(at_ids.size, dtype=at_ids.dtype)).reshape(at_ids.shape)
    total = (at_ids * row).sum() + jnp.sin(answer.log_sum_exp).sum()
    if answer.reduced is not None:
        total += (jnp.sin(answer.reduced) * row[..., 0]).sum()
    return total, answer


value_and_grad = jax.jit(
    jax.value_and_grad(objective, has_aux=True),
    static_argnames=("kind", "with_shift", "num_valid", "implementation", "block_rows"),
)


@functools.cache
def exact(rows, columns, num_valid, k, kind, with_shift):
    """The definition in float64."""
    floats, integers = problem(rows, columns, num_valid, k)
    with jax.enable_x64(True):
        options = {"kind": kind, "with_shift": with_shift, "num_valid": num_valid, "implementation": "dense"}
        return jax.tree.map(np.asarray, value_and_grad(floats, integers, **options))


def as_float32(floats):
    return tuple(jnp.asarray(x, jnp.float32) for x in floats)


def assert_close(found, wanted, relative):
    """Equal to `relative` of the largest entry, infinities at the same places."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b)
        assert a.shape == b.shape
        np.testing.assert_array_equal(np.isfinite(a), np.isfinite(b))
        finite = np.isfinite(b)
        np.testing.assert_allclose(a[finite], b[finite], rtol=0, atol=relative * max(1.0, np.abs(b[finite]).max()))


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("implementation", vocab_head.IMPLEMENTATIONS)
@pytest.mark.parametrize("with_shift", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("kind", [None, "linear", "log1p"])
def test_equals_the_definition(implementation, kind, with_shift):
    for rows, columns, num_valid, k in ((ROWS[0], 257, 257, 3), (ROWS[1], 1024, 1000, 2)):
        floats, integers = problem(rows, columns, num_valid, k)
        options = {"kind": kind, "with_shift": with_shift, "num_valid": num_valid}
        found = value_and_grad(
            as_float32(floats),
            integers,
            implementation=implementation,
            block_rows=None if rows == ROWS[0] else 2,
            **options,
        )
        assert_close(found, exact(rows, columns, num_valid, k, kind, with_shift), 3e-6)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("implementation", vocab_head.IMPLEMENTATIONS)
def test_bfloat16_operands_accumulate_in_float32(implementation):
    """Against float64 on the rounded operands: what is left is the rounding of dlogits, relative to each of them."""
    rows, num_valid = ROWS[0], 257
    floats, integers = problem(rows, 257, num_valid, 2)
    rounded = jnp.asarray(floats[0], jnp.bfloat16)
    kernel = jnp.asarray(floats[1], jnp.bfloat16)
    options = {"kind": "log1p", "with_shift": True, "num_valid": num_valid}
    with jax.enable_x64(True):
        wide = (np.asarray(rounded, np.float64), np.asarray(kernel, np.float64), *floats[2:])
        wanted = value_and_grad(wide, integers, implementation="dense", **options)
    found = value_and_grad(
        (rounded, *as_float32(floats[1:])), integers, implementation=implementation, block_rows=8, **options
    )
    (_, answer), gradient = found
    assert answer.at_ids.dtype == answer.log_sum_exp.dtype == answer.reduced.dtype == jnp.float32
    assert gradient[0].dtype == jnp.bfloat16
    assert gradient[1].dtype == jnp.float32
    assert_close(found[0], wanted[0], 3e-6)
    assert_close(gradient, wanted[1], 6e-3)


@pytest.mark.slow
@settings(max_examples=6)
@given(
    st.integers(2, 40), st.integers(1, 3), st.sampled_from([257, 300]), st.integers(0, 2**16),
    st.sampled_from([None, "log1p"]), st.sampled_from(["blocks", "pallas"]),
)  # fmt: skip
def test_any_number_of_rows(rows, k, num_valid, seed, kind, implementation):
    floats, integers = problem((rows,), 384, num_valid, k, seed)
    options = {"kind": kind, "with_shift": True, "num_valid": num_valid}
    dense, found = (
        value_and_grad(as_float32(floats), integers, implementation=name, block_rows=block_rows, **options)
        for name, block_rows in (("dense", None), (implementation, 16))
    )
    assert_close(found, dense, 3e-6)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("implementation", ["blocks", "pallas"])
@pytest.mark.parametrize("columns", [50257, 50258])
def test_the_published_vocabularies(columns, implementation):
    """Padded or not, with a suppressed mask: probabilities of the valid tokens add up to one."""
    stored = -(-columns // 128) * 128
    features = jax.random.normal(jax.random.key(0), (3, 8))
    kernel = jax.random.normal(jax.random.key(1), (8, stored)) * 0.1
    ids = jnp.asarray([[0, columns - 1], [5, 5], [columns - 2, 50256]], jnp.int32)
    suppress = 50257 if columns == 50258 else None
    options = {"num_valid": columns, "implementation": implementation}
    query = vocab_head.Query(ids, suppress=suppress, reduction=vocab_head.Reduction("linear"))
    padded = vocab_head.log_probs(vocab_head.Head(kernel, jnp.zeros(stored), **options), query, features)
    head = vocab_head.Head(kernel[:, :columns], jnp.zeros(columns), **options)
    cut = vocab_head.log_probs(head, vocab_head.Query(ids, suppress=suppress), features)
    np.testing.assert_allclose(padded.reduced, 1.0, rtol=1e-5)
    np.testing.assert_allclose(padded.at_ids, cut.at_ids, rtol=1e-6)
    assert np.isneginf(padded.at_ids[0, 1]) == (columns == 50258)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("implementation", vocab_head.IMPLEMENTATIONS)
def test_large_features_do_not_overflow(implementation):
    floats, integers = problem((9,), 257, 257, 2, size=1e4)
    found = value_and_grad(
        as_float32(floats), integers, kind="log1p", with_shift=True, num_valid=257, implementation=implementation,
        block_rows=4,
    )  # fmt: skip
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("implementation", vocab_head.IMPLEMENTATIONS)
def test_equal_logits_are_uniform(implementation):
    ids = jnp.asarray([[0, 1], [255, 9]], jnp.int32)
    head = vocab_head.Head(jnp.zeros((4, 256)), jnp.full((256,), 3.0), implementation=implementation)
    answer = vocab_head.log_probs(head, vocab_head.Query(ids), jnp.zeros((2, 4)))
    np.testing.assert_allclose(answer.at_ids, -np.log(256), rtol=1e-6)
    np.testing.assert_allclose(answer.log_sum_exp, 3 + np.log(256), rtol=1e-6)


@pytest.mark.slow
def test_gradients_match_finite_differences():
    """Of the definition itself, in float64; the implementations are compared with it above."""
    floats, integers = problem((3,), 20, 18, 2)
    floats = list(floats)
    floats[3] = np.where(np.isfinite(floats[3]), floats[3], 0.5)  # no differences at -inf
    rng = np.random.default_rng(1)
    direction = [rng.normal(size=x.shape) for x in floats]
    for kind, implementation in itertools.product(("linear", "log1p"), ("blocks", "pallas")):
        options = {"kind": kind, "with_shift": True, "num_valid": 18, "implementation": implementation, "block_rows": 2}
        with jax.enable_x64(True):
            _, gradient = value_and_grad(tuple(floats), integers, **options)
            along = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
            step = 1e-6
            moved = (tuple(x + s * d for x, d in zip(floats, direction, strict=True)) for s in (step, -step))
            ends = [float(value_and_grad(x, integers, **options)[0][0]) for x in moved]
        np.testing.assert_allclose((ends[0] - ends[1]) / (2 * step), along, rtol=1e-6)


def row_loss(answer, data, shared):
    out = data * (jnp.exp(answer.at_ids[..., 1]) - answer.at_ids[..., 0]) * shared[:, None] + jnp.sin(
        answer.log_sum_exp
    )
    return out if answer.reduced is None else out + jnp.sin(answer.reduced)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [None, "log1p"])
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("implementation", ["blocks", "pallas"])
def test_summed_loss_is_the_sum_of_the_losses(kind, dtype, implementation):
    floats, (ids, shift_ids) = problem((2, 5), 300, 257, 2)
    data, shared = jnp.linspace(0.1, 1.0, 10).reshape(2, 5), jnp.asarray([0.5, 2.0])

    def total(floats, fused):
        features, kernel, bias, amounts, weights, scale, inner = floats
        reduction = None if kind is None else vocab_head.Reduction(kind, weights, scale, inner)
        head = vocab_head.Head(kernel, bias, num_valid=257, block_rows=2, implementation=implementation)
        query = vocab_head.Query(ids, amounts, shift_ids, reduction=reduction)
        if not fused:
            by_row = row_loss(vocab_head.log_probs(head, query, features), data, shared)
            return 0.3 * by_row.sum(), by_row
        out, by_row = vocab_head.summed_loss(head, query, features, row_loss, data, shared)
        return 0.3 * out, by_row

    floats = as_float32(floats)
    floats = (floats[0].astype(dtype), *floats[1:])
    run = jax.jit(jax.value_and_grad(total, has_aux=True), static_argnums=1)
    # The scale of 0.3 comes before the rounding of dlogits in one and after it in the other.
    assert_close(run(floats, True), run(floats, False), 2e-6 if dtype == "float32" else 8e-3)
    undifferentiated = jax.jit(total, static_argnums=1)(floats, True)
    assert_close(undifferentiated, run(floats, False)[0], 2e-6)


def test_nothing_of_rows_by_vocabulary_is_stored():
    """128 rows in blocks of 8: the compiled gradient holds no array of 128 x 1024, in any dtype or order."""
    floats, integers = problem((128,), 1024, 1000, 2)
    options = {"kind": "log1p", "with_shift": True, "num_valid": 1000, "implementation": "blocks", "block_rows": 8}
    compiled = value_and_grad.lower(as_float32(floats), integers, **options).compile()
    for size in ("128,1024", "1,128,1024", "1024,128", "16,1,8,1024", "16,8,1024"):
        assert f"[{size}]" not in compiled.as_text()
    assert "[1,8,1024]" in compiled.as_text()


def test_our_tiles_store_nothing_of_rows_by_vocabulary():
    """512 rows of which 128 have dlogits at a time: nothing of 512 x 1024, and no float32 logits of the 128."""
    floats, integers = problem((512,), 1024, 1000, 2)
    options = {"kind": "log1p", "with_shift": True, "num_valid": 1000, "implementation": "pallas", "block_rows": 128}
    floats = as_float32(floats)
    floats = (floats[0].astype(jnp.bfloat16), *floats[1:])
    text = value_and_grad.lower(floats, integers, **options).compile().as_text()
    assert not re.search(r"\[(512,1024|1024,512|4,128,1024|4,1,128,1024)\]", text)
    assert re.search(r"bf16\[(1,)?128,1024\]", text)


@pytest.mark.parametrize("implementation", ["blocks", "pallas"])
def test_deterministic(implementation):
    floats, integers = problem(ROWS[0], 257, 257, 2)
    options = {"kind": None, "with_shift": True, "num_valid": 257, "implementation": implementation, "block_rows": 8}
    first, second = (value_and_grad(as_float32(floats), integers, **options) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)


HEAD, QUERY = vocab_head.Head(jnp.zeros((4, 20)), jnp.zeros(20)), vocab_head.Query(jnp.zeros((3, 1), jnp.int32))


def asking(reduction):
    return HEAD, QUERY._replace(reduction=reduction)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((dataclasses.replace(HEAD, implementation="triton"), QUERY), "'triton': expected dense, blocks, pallas"),
        ((dataclasses.replace(HEAD, num_valid=21), QUERY), "num_valid = 21: expected 1 to 20"),
        ((dataclasses.replace(HEAD, axis_name="tensor", implementation="dense"), QUERY), "'dense': expected blocks"),
        ((dataclasses.replace(HEAD, bias=jnp.zeros(19)), QUERY), r"bias = shape \(19,\): expected \(20,\)"),
        (
            (dataclasses.replace(HEAD, kernel=jnp.zeros((5, 20))), QUERY),
            r"kernel = shapes \(3, 4\), \(5, 20\)",
        ),
        ((HEAD, QUERY._replace(suppress=20)), "suppress = 20: expected 0 to 19"),
        ((HEAD, QUERY._replace(ids=jnp.zeros((4, 1), jnp.int32))), r"ids = shape \(4, 1\)"),
        ((HEAD, QUERY._replace(shift=jnp.zeros(4), shift_ids=jnp.zeros(3, jnp.int32))), r"shift = shape \(4,\)"),
        ((HEAD, QUERY._replace(shift=jnp.zeros(3))), "shift_ids = None: expected"),
        (asking(vocab_head.Reduction("max")), "reduction.kind = 'max': expected one of log1p, linear, cotangent"),
        (asking(vocab_head.Reduction("linear", scale=jnp.ones(3))), "expected weights alone"),
        (asking(vocab_head.Reduction("log1p", jnp.ones(7))), r"reduction.weights = shape \(7,\)"),
        (asking(vocab_head.Reduction("log1p", scale=jnp.ones(4))), r"reduction.scale = shape \(4,\)"),
    ],
)
def test_arguments_that_do_not_fit(asked, message):
    with pytest.raises(ValueError, match=message):
        vocab_head.log_probs(*asked, jnp.zeros((3, 4)))


@pytest.mark.parametrize(
    ("implementation", "options", "reason"),
    [
        ("blocks", {"target": Target("gpu", "V100", (7, 0)), "dtype": jnp.float32}, None),
        ("dense", {"split": True}, "expected blocks or pallas where a mesh axis splits the vocabulary"),
        ("dense", {}, None),
        ("pallas", {"target": Target("cpu", "cpu"), "dtype": jnp.float32}, None),
        ("pallas", {"target": Target("gpu", "H200", (9, 0))}, None),
        ("pallas", {"target": Target("gpu", "H200", (9, 0)), "dtype": jnp.float32}, "bfloat16 or float16 on a GPU"),
        (
            "pallas",
            {"target": Target("gpu", "A100", (8, 0))},
            "H200, GH200), not A100 of compute capability 8.0",
        ),
        ("pallas", {"target": Target("gpu", "B200", (10, 0))}, "not B200 of compute capability 10.0"),
    ],
)
def test_what_each_needs(implementation, options, reason):
    found = vocab_head.why_not(implementation, **options)
    assert (found is None) if reason is None else reason in found


@pytest.mark.slow
def test_on_a_mesh():
    """Data, fsdp and tensor axes, in a process with 8 devices."""
    script = __file__.replace("test_vocab.py", "kernels_on_a_mesh.py")
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False, env=programs.environment()
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "ok"


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("implementation", ["blocks", "dense", "pallas"])
def test_several_queries_at_once(implementation):
    """The answers of each alone: plain ids, and shifted logits with a sum. 'blocks' multiplies by the kernel once."""
    floats, integers = problem((2, 9), 256, 250, 3)
    features, kernel, bias, amounts, weights, scale, inner = (x.astype(np.float32) for x in floats)
    head = vocab_head.Head(kernel, bias, num_valid=250, implementation=implementation, block_rows=4)
    plain = vocab_head.Query(integers[0], suppress=SUPPRESS)
    reduction = vocab_head.Reduction("log1p", weights, scale, inner)
    shifted = vocab_head.Query(integers[0], amounts, integers[1], SUPPRESS, reduction)
    together = jax.jit(vocab_head.log_probs_of_each).lower(head, (plain, shifted), features).compile()
    each = [jax.jit(vocab_head.log_probs).lower(head, query, features).compile() for query in (plain, shifted)]
    answers = together(head, (plain, shifted), features)
    for query, alone, answer in zip((plain, shifted), each, answers, strict=True):
        wanted = alone(head, query, features)
        for found, right in zip(jax.tree.leaves(answer), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(found, right, rtol=2e-6, atol=2e-6)
    assert [a.reduced is None for a in answers] == [True, False]
    if implementation == "blocks":
        assert together.as_text().count(" dot(") == 1


def test_maximum_and_sum_in_one_pass():
    """What a GPU reads once: any row, of -inf alone too, and a logit that is no number makes neither."""
    from kernels.vocab_head.blocks import peak_and_mass

    logits = 30 * jax.random.normal(jax.random.key(0), (2, 3, 1000))
    logits = logits.at[..., 900:].set(-jnp.inf).at[0, 0].set(-jnp.inf)
    peak, mass = jax.jit(peak_and_mass)(logits)
    np.testing.assert_array_equal(peak, jnp.maximum(logits.max(-1), jnp.finfo(jnp.float32).min))
    np.testing.assert_allclose(mass, jnp.exp(logits - peak[..., None]).sum(-1), rtol=1e-6)
    assert mass[0, 0] == 0
    peak, mass = peak_and_mass(jnp.array([[1.0, jnp.nan, 2.0]]))
    assert jnp.isnan(peak).all() and jnp.isnan(mass).all()
