"""What holds for every sampler: prompts stay, sequences do not see their batch, masks are never drawn."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfm_jax import flow
from dfm_jax.flow import categorical
from dfm_jax.flow.samplers import grid as grids

VOCAB, BATCH, LENGTH = 11, 4, 7
PATH = flow.MixtureDiscreteProbPath(flow.CondOTScheduler())
SOURCES = {"mask": flow.MaskSource(VOCAB), "uniform": flow.UniformSource(VOCAB)}
METHODS = {
    "exact": (flow.Exact(), {}),
    "euler": (flow.Euler(), {}),
    "div_free": (flow.Euler(), {"div_free": 3.0}),
    "two_stage": (flow.TwoStage(), {"div_free": 3.0}),
    "corrector": (flow.Corrector(1, 0.8), {}),
    "multiflow": (flow.Multiflow(0.3), {}),
    "ancestral": (flow.Ancestral(), {}),
    "remask": (flow.Remask("rescale", 0.5), {}),
    "first_hitting": ("first_hitting", {}),
    "thinning": ("thinning:delta=0.2", {}),
}
PAIRS = [(m, s) for s in SOURCES for m in METHODS if s == "mask" or m not in ("remask", "first_hitting")]
RENOISING = {"div_free", "two_stage", "corrector", "multiflow", "remask"}


def context_model(states):
    """A model that looks at the whole sequence and the time, and likes the mask above all."""
    table = jnp.asarray(np.random.default_rng(3).normal(size=(states, states)), jnp.float32)
    liked = jnp.where(jnp.arange(states) == VOCAB, 30.0, 0.0)

    def model(x, t):
        whole = table[x]
        return whole + 0.5 * jnp.roll(whole, 1, 1) + t[:, None, None] + liked[None, None]

    return model


@functools.cache
def solver(method, source_name, group_size=None):
    source = SOURCES[source_name]
    step, _ = METHODS[method]
    return flow.MixtureDiscreteSolver(context_model(source.num_states), PATH, source, step=step, group_size=group_size)


def start(source_name, seed=0):
    return SOURCES[source_name].sample(jax.random.key(seed + 100), (BATCH, LENGTH))


def run(method, source_name, key, x_init, group_size=None, fixed=None):
    """States at t = 0, 1/2 and 1 of 6 steps: one compiled program per method for all tests here."""
    chosen = solver(method, source_name, group_size)
    options = {"steps": 6, "return_intermediates": (0.0, 0.5, 1.0), "fixed": fixed, **METHODS[method][1]}
    return np.asarray(chosen.sample(key, x_init, **options))


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(("method", "source_name"), PAIRS)
@settings(max_examples=8)
@given(seed=st.integers(0, 2**16), bits=st.integers(0, 2 ** (BATCH * LENGTH) - 1))
def test_fixed_positions_are_never_altered(method, source_name, seed, bits):
    """Prompt, suffix or scattered tokens: the same at every intermediate time, and everything else is a data token."""
    fixed = np.array([(bits >> i) & 1 for i in range(BATCH * LENGTH)], bool).reshape(BATCH, LENGTH)
    prompt = np.random.default_rng(seed).integers(0, VOCAB, (BATCH, LENGTH))
    x_init = jnp.where(jnp.asarray(fixed), jnp.asarray(prompt, jnp.int32), start(source_name, seed))
    states = run(method, source_name, jax.random.key(seed), x_init, fixed=jnp.asarray(fixed))
    for x in states:
        assert (x[fixed] == prompt[fixed]).all()
    assert (states[-1] < VOCAB).all() and (states[-1] >= 0).all()


@pytest.mark.default_cases(5)
@pytest.mark.parametrize(("method", "source_name"), PAIRS)
def test_a_sequence_does_not_depend_on_its_batch(method, source_name):
    """Keys (B,) or one key, in any order, beside any other sequences: the same tokens."""
    key, x_init = jax.random.key(4), start(source_name)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(BATCH))
    together = run(method, source_name, key, x_init)
    assert (together == run(method, source_name, keys, x_init)).all()
    order = np.array([2, 0, 3, 1])
    other = run(method, source_name, keys[order].at[0].set(jax.random.key(9)), x_init[order])
    assert (together[:, order[1:]] == other[:, 1:]).all()
    assert len({tuple(row) for row in together[-1]}) > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "source_name"), [("exact", "uniform"), ("first_hitting", "mask"), ("thinning", "uniform")]
)
def test_the_same_in_any_group_size_and_inside_jit(method, source_name):
    keys, x_init = jax.random.split(jax.random.key(0), BATCH), start(source_name)
    want = run(method, source_name, keys, x_init)
    assert (run(method, source_name, keys, x_init, group_size=3) == want).all()
    chosen = solver(method, source_name)
    jitted = jax.jit(lambda keys, x: chosen.sample(keys, x, steps=6, **METHODS[method][1]))
    assert (np.asarray(jitted(keys, x_init)) == want[-1]).all()
    assert (np.asarray(jitted(keys[1:2], x_init[1:2])) == want[-1, 1:2]).all()


@pytest.mark.parametrize("method", list(METHODS))
def test_revealed_tokens_stay(method):
    """Mask source, a model that is not carry-over: only methods that renoise ever rewrite a revealed token."""
    rewritten = 0
    for seed in range(10):
        first, middle, last = run(method, "mask", jax.random.key(seed), start("mask"))
        assert (first == VOCAB).all() and (last < VOCAB).all()
        revealed = middle != VOCAB
        assert 0 < revealed.sum() < revealed.size
        rewritten += (last[revealed] != middle[revealed]).sum()
    assert (rewritten > 0) == (method in RENOISING)


class Counting:
    """A fused denoiser of a large vocabulary that counts its traces and, through a callback, the runs of its trunk."""

    def __init__(self, states, width=8, watch=False):
        rng = np.random.default_rng(0)
        self.table = jnp.asarray(rng.normal(size=(states, width)), jnp.float32)
        self.traces, self.runs, self.watch = 0, 0, watch

    def features(self, x, t):
        self.traces += 1
        if self.watch:
            jax.debug.callback(self._ran)
        return self.table[x] * (1.0 + t[:, None, None])

    def _ran(self):
        self.runs += 1

    def draw(self, keys, features, x_t, t):
        logits = features @ self.table[:-1].T
        return categorical.draw(keys, logits)


def test_no_array_over_the_vocabulary_and_no_host_traffic():
    """One program: no (B, L, S) array, no callback, no transfer, whatever the number of steps."""
    states, batch, length = 4096 + 1, 4, 24
    source = flow.MaskSource(states - 1)
    for step in ("exact", "two_stage", "first_hitting"):
        chosen = flow.MixtureDiscreteSolver(Counting(states), PATH, source, step=step, group_size=8)
        x_init = jnp.full((batch, length), source.mask_id, jnp.int32)
        keys = jax.random.split(jax.random.key(0), batch)
        lowered = jax.jit(lambda k, x, c=chosen: c.sample(k, x, steps=50)).lower(keys, x_init)
        text = lowered.compile().as_text()
        shapes = re.findall(r"(?:f32|bf16|s32|u32|pred)\[([0-9,]+)\]", text)
        sizes = [np.prod([int(n) for n in dims.split(",")]) for dims in shapes]
        # The head's table is (S, 8), a group's logits (8, S), padded to whole blocks.
        assert max(sizes) < batch * length * states / 4
        for forbidden in ("callback", "infeed", "outfeed", "host_transfer", "send("):
            assert forbidden not in text


def test_one_trace_for_all_calls_of_a_shape():
    """The model is traced once however many steps are taken and however often the sampler is called."""
    model = Counting(13)
    chosen = flow.MixtureDiscreteSolver(model, PATH, flow.MaskSource(12))
    x_init = jnp.full((2, 5), 12, jnp.int32)
    for seed in range(3):
        chosen.sample(jax.random.key(seed), x_init, steps=16)
    assert model.traces == 1
    chosen.sample(jax.random.key(0), x_init, time_grid=np.linspace(0, 0.5, 17))
    assert model.traces == 1


def test_steps_without_a_jump_skip_the_model():
    """Mask source, 3 tokens in 64 steps: the trunk runs at most 3 times, and not at all when everything is fixed."""
    model = Counting(13, watch=True)
    chosen = flow.MixtureDiscreteSolver(model, PATH, flow.MaskSource(12))
    x_init = jnp.full((1, 3), 12, jnp.int32)
    chosen.sample(jax.random.key(0), x_init, steps=64).block_until_ready()
    jax.effects_barrier()
    assert 1 <= model.runs <= 3
    before = model.runs
    chosen.sample(jax.random.key(0), x_init, steps=64, fixed=jnp.ones((1, 3), bool)).block_until_ready()
    jax.effects_barrier()
    assert model.runs == before


def test_float32_scalars_at_many_steps():
    """The mean number of tokens revealed per step stays linear at 4096 steps: no digits lost near t = 1."""
    plan = flow.Exact().plan(flow.SineSquaredScheduler(), SOURCES["mask"], grids.uniform_grid(4096))
    jump = np.asarray(plan.scalars["jump"], np.float32)
    j = np.arange(4096)
    exact = 1 - (np.sin(np.pi * (4095 - j) / 8192) / np.sin(np.pi * (4096 - j) / 8192)) ** 2
    np.testing.assert_allclose(jump, exact, rtol=2e-7)
    assert jump[-1] == 1.0


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("method", ["exact", "corrector", "remask", "first_hitting"])
def test_inside_shard_map_with_checked_types(method):
    """Also from a constant x_init, whose type must come to vary with the keys: each device runs its own loops."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    chosen, options = solver(method, "mask"), METHODS[method][1]

    def generate(keys):
        x_init = jnp.full((keys.shape[0], LENGTH), VOCAB, jnp.int32)
        return chosen.sample(keys, x_init, steps=6, return_intermediates=(0.0, 0.5, 1.0), **options)

    spec = jax.sharding.PartitionSpec
    sharded = jax.shard_map(generate, mesh=mesh, in_specs=spec("data"), out_specs=spec(None, "data"))
    keys = jax.random.split(jax.random.key(0), BATCH)
    assert (np.asarray(jax.jit(sharded)(keys)) == run(method, "mask", keys, start("mask"))).all()
