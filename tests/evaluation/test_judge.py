"""The judge's two conventions, exact for any number of samples."""

import pathlib

import jax
import numpy as np
import pytest
from flax import nnx

from dfm_jax.evaluation.judge import perplexity as judge
from dfm_jax.evaluation.judge.gpt2 import GPT2, GPT2Config, load_gpt2
from dfm_jax.runtime.errors import WorldError

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"


class Letters:
    """Token i is the i-th letter; the judge's and the samples' vocabularies are rotations of each other."""

    def __init__(self, name: str, eos_id: int, shift: int = 0):
        self.name, self.eos_id, self.shift = name, eos_id, shift

    vocab_size = 100

    def encode_batch(self, texts) -> list[np.ndarray]:
        return [np.asarray([ord(c) - ord("0") - self.shift for c in text], np.uint16) for text in texts]

    def decode(self, ids) -> str:
        return "".join(chr(ord("0") + self.shift + int(i)) for i in ids)


GPT2_LETTERS = Letters("letters", 52)


@pytest.fixture(scope="module")
def tiny() -> GPT2:
    return load_gpt2(FIXTURES / "tiny_gpt2")


def test_reference_convention_matches_the_fixture(tiny):
    fixture = np.load(FIXTURES / "judge.npz")
    for batch_size in (1, 2, 4):
        scorer = judge.Judge(tiny, GPT2_LETTERS, batch_size=batch_size)
        result = scorer(fixture["samples"], GPT2_LETTERS)
        assert abs(result.ppl_mean_of_exp / fixture["ppl"] - 1) < 1e-4
        assert result.samples == 3
        if 52 not in fixture["samples"][:, 1:]:
            expected = np.exp(fixture["nll"].mean())
            assert abs(result.ppl_token_mean / expected - 1) < 1e-4
            assert result.tokens == 3 * 19


def test_tokens_after_the_first_end_do_not_count(tiny):
    scorer = judge.Judge(tiny, GPT2_LETTERS, batch_size=2)
    samples = np.random.default_rng(0).integers(0, 52, (3, 12))
    samples[0, 5] = samples[0, 9] = 52
    samples[1, 0] = 52
    result = scorer(samples, GPT2_LETTERS)
    assert result.tokens == 5 + 11 + 11
    logits = np.asarray(tiny.logits(samples.astype(np.int32)), np.float64)
    nll = np.log(np.exp(logits).sum(-1))[:, :-1] - np.take_along_axis(logits[:, :-1], samples[:, 1:, None], 2).squeeze(
        2
    )
    expected = np.exp((nll[0, :5].sum() + nll[1].sum() + nll[2].sum()) / 27)
    assert abs(result.ppl_token_mean / expected - 1) < 1e-5
    assert abs(result.ppl_mean_of_exp / np.exp(nll.mean(1)).mean() - 1) < 1e-5
    assert np.isclose(result.ppl_mean_of_exp_stderr, np.exp(nll.mean(1)).std(ddof=1) / 3**0.5, rtol=1e-4)


def test_another_vocabulary_is_translated(tiny):
    scorer = judge.Judge(tiny, GPT2_LETTERS, batch_size=4)
    samples = np.random.default_rng(1).integers(10, 40, (5, 9))
    samples[2, 4] = 52
    moved = np.where(samples == 52, 99, samples - 7)
    there = scorer(moved, Letters("moved", 99, shift=7))
    here = scorer(samples, GPT2_LETTERS)
    np.testing.assert_allclose(there[:3], here[:3], rtol=1e-6)


def test_a_mesh_changes_nothing(tiny):
    mesh = jax.make_mesh((1, 1), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    samples = np.random.default_rng(2).integers(0, 52, (3, 7))
    alone = judge.Judge(tiny, GPT2_LETTERS, batch_size=2)(samples, GPT2_LETTERS)
    meshed = judge.Judge(tiny, GPT2_LETTERS, batch_size=2, mesh=mesh)(samples, GPT2_LETTERS)
    np.testing.assert_allclose(meshed, alone, rtol=1e-6)


def test_what_cannot_be_judged_is_named(tiny, tmp_path):
    scorer = judge.Judge(tiny, GPT2_LETTERS, batch_size=2)
    with pytest.raises(ValueError, match="N >= 1"):
        scorer(np.zeros((0, 4), np.int64), GPT2_LETTERS)
    with pytest.raises(ValueError, match="token 53"):
        scorer(np.full((1, 4), 53), GPT2_LETTERS)
    with pytest.raises(WorldError, match=r"config\.eval\.judge = .*hf download"):
        judge.load_judge(str(tmp_path))
    assert judge.load_judge(str(FIXTURES / "tiny_gpt2")) is judge.load_judge(str(FIXTURES / "tiny_gpt2"))


def test_one_program_serves_any_number_of_samples(monkeypatch):
    traces = []
    sums = judge._nll_sums
    monkeypatch.setattr(judge, "_nll_sums", lambda *args: traces.append(1) or sums(*args))
    model = GPT2(GPT2Config(vocab_size=53, n_positions=8, n_embd=8, n_layer=1, n_head=1), rngs=nnx.Rngs(0))
    scorer = judge.Judge(model, GPT2_LETTERS, batch_size=2)
    for count in (1, 2, 5):
        scorer(np.random.default_rng(count).integers(0, 52, (count, 8)), GPT2_LETTERS)
    assert len(traces) == 1
