"""Generation: one sequence, one text, whatever the batch; prompts stay; every state can be seen."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx
from toy_network import make_problem

from dfm_jax import flow
from dfm_jax.evaluation.generation import Generator, SamplingSettings, generate, to_text
from dfm_jax.evaluation.prompts import Prompt
from dfm_jax.models.transformer import Transformer, TransformerConfig
from dfm_jax.runtime.errors import UsageError

V, L = 11, 12


@functools.cache
def make_model(states: int) -> Transformer:
    config = TransformerConfig(states, 16, 8, L, n_blocks=1, n_heads=2)
    model = jax.jit(lambda: Transformer(config, rngs=nnx.Rngs(0)))()
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda p: p + 0.3 * rng.standard_normal(p.shape, np.float32), model)


@functools.cache
def problem(source: str):
    return make_problem(flow.get_source(source, V), parametrization="leave_one_out")


def draw(source: str, num: int, batch_size: int, prompts=(), mesh=None, **settings):
    given = SamplingSettings(**({"length": L, "steps": 8, "seed": 3} | settings))
    model = make_model(problem(source).source.num_states)
    return generate(model, problem(source), given, num, batch_size=batch_size, prompts=prompts, mesh=mesh)


@pytest.mark.slow
@pytest.mark.parametrize("source", [pytest.param("mask", marks=pytest.mark.slow), "uniform"])
def test_a_sequence_depends_on_its_number_alone(source):
    whole = draw(source, 6, 6)
    assert whole.shape == (6, L) and whole.dtype == np.int32
    assert whole.min() >= 0 and whole.max() < V
    np.testing.assert_array_equal(draw(source, 5, 2), whole[:5])


PROMPT = Prompt(np.arange(L, dtype=np.int32) % V, np.arange(L) % 3 == 1)
# The solvers have such a test for every method.
METHODS = ["exact", pytest.param("corrector", marks=pytest.mark.slow), "first_hitting"]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_prompted_positions_never_change(method):
    for source in ("mask",) if method == "first_hitting" else ("mask", "uniform"):
        generator = Generator(problem(source), SamplingSettings(L, 4, method), 3, frames=5)
        model = make_model(problem(source).source.num_states)
        (batch,) = generator(model, 3, prompts=[PROMPT])
        assert batch.frames is not None and batch.frames.shape == (5, 3, L)
        assert (batch.frames[:, :, PROMPT.fixed] == PROMPT.tokens[PROMPT.fixed]).all()
        np.testing.assert_array_equal(batch.frames[-1], batch.tokens)
        assert batch.tokens.max() < V
        if source == "mask":
            assert (batch.frames[0][:, ~PROMPT.fixed] == V).all()


@pytest.mark.slow
def test_prompts_are_used_in_turn_and_seeds_differ():
    other = Prompt(PROMPT.tokens[::-1].copy(), ~PROMPT.fixed)
    tokens = draw("uniform", 4, 2, prompts=[PROMPT, other])
    for row, prompt in zip(tokens, [PROMPT, other] * 2, strict=True):
        assert (row[prompt.fixed] == prompt.tokens[prompt.fixed]).all()
    assert (draw("uniform", 4, 2, prompts=[PROMPT, other], seed=4) != tokens).any()


def test_frames_and_their_times():
    settings = SamplingSettings(L, 10)
    generator = Generator(problem("mask"), settings, 2, frames=4)
    np.testing.assert_array_equal(generator.frame_steps, [0, 3, 7, 10])
    np.testing.assert_allclose(generator.frame_times, [0, 0.3, 0.7, 1.0])
    assert len(Generator(problem("mask"), settings, 2, frames=65).frame_steps) == 11
    assert settings.describe()["temperature"] == 1.0


@pytest.mark.slow
def test_another_scheduler_and_a_cold_temperature():
    cold = draw("mask", 2, 2, temperature=0.0, scheduler=flow.get_scheduler("cosine_md4"))
    assert cold.max() < V
    np.testing.assert_array_equal(draw("mask", 2, 2, temperature=0.0, scheduler=flow.get_scheduler("cosine_md4")), cold)


def test_wrong_settings_are_named():
    with pytest.raises(UsageError, match=r"config\.sampling\.method = slow: "):
        Generator(problem("mask"), SamplingSettings(L, 4, "slow"), 2)
    never = make_problem(flow.CategoricalSource([0.5, 0.5] + [0.0] * (V - 2)))  # inside the program the law is unknown
    with pytest.raises(UsageError, match=r"config\.sampling\.corrector = gibbs: .* a source with p > 0 at every token"):
        Generator(never, SamplingSettings(L, 4, corrector="gibbs"), 2)


def test_text_is_trimmed_at_the_first_end_after_the_prompt():
    class Letters:
        eos_id = 10

        def decode(self, ids):
            return "".join("abcdefghij."[i] for i in ids)

    tokens = np.asarray([0, 10, 1, 2, 10, 3])
    assert to_text(tokens, Letters()) == "a.bc.d"
    assert to_text(tokens, Letters(), trim=True) == "a"
    assert to_text(tokens, Letters(), trim=True, prompt_length=2) == "a.bc"
    assert to_text(tokens[2:4], Letters(), trim=True) == "bc"
