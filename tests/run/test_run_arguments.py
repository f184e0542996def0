"""What a Python caller may hand to a loaded run, and what is refused by name. The run is the one of version 0.1."""

import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

import dfm_jax
from dfm_jax.evaluation.generation import Generator

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "run_v01"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "old"
    shutil.copytree(FIXTURE / "runs" / "old", folder)
    return dfm_jax.load(folder)


def test_a_run_describes_itself_in_two_lines(run):
    lines = repr(run).splitlines()
    assert len(lines) == 2 and str(run.folder) in lines[0] and "step=10" in lines[0]
    assert run.config.flow.path in lines[1] and run.config.flow.loss_function in lines[1]


@pytest.mark.slow
def test_lists_numpy_and_jax_are_taken_alike(run):
    rows = [[1, 2, 3, 4], [5, 6, 7, 8]]
    by_list = run.logits(rows, [0.25, 0.5])
    assert by_list.shape[:2] == (2, 4) and by_list.dtype == jnp.float32
    for x_t, t in ((np.array(rows), np.array([0.25, 0.5])), (jnp.array(rows, jnp.uint8), jnp.array([0.25, 0.5]))):
        np.testing.assert_array_equal(run.logits(x_t, t), by_list)
    np.testing.assert_array_equal(run.logits(rows, 0.5)[1], by_list[1])
    bounds = [run.likelihood(blocks, time_points=2) for blocks in (rows, np.array(rows), jnp.array(rows))]
    assert len({next(iter(bound.values())).nats_per_token for bound in bounds}) == 1


def test_no_samples_are_an_empty_list(run):
    assert run.sample(num=0) == [] and dfm_jax.sample(run, 0) == []
    assert run.sample_tokens(0).shape == (0, run.config.model.length)
    assert run.sample_tokens(np.int64(1), length=4, steps=2).shape == (1, 4)


@pytest.mark.slow
def test_drafts_are_other_costs_and_the_same_tokens(run):
    given = {"length": 8, "steps": 6, "seed": 3}
    tokens = run.sample_tokens(2, **given, corrector="gibbs:sites=1")
    np.testing.assert_array_equal(run.sample_tokens(2, **given, corrector="gibbs:sites=1", draft=3), tokens)
    assert (run.sample_tokens(2, **given) != tokens).any()


def test_a_call_like_an_earlier_one_traces_nothing(run, monkeypatch):
    traced, draw = [], Generator._draw
    monkeypatch.setattr(Generator, "_draw", lambda *given, **how: traced.append(given) or draw(*given, **how))
    first = run.sample_tokens(1, length=4, steps=3)
    assert len(traced) == 1
    np.testing.assert_array_equal(run.sample_tokens(1, length=4, steps=3), first)
    assert len(traced) == 1
    assert (run.sample_tokens(1, length=4, steps=3, seed=7) != first).any() and len(traced) == 2
    for seed in range(9):  # the oldest programs are forgotten
        run._generator(run._generators[-1].settings, 100 + seed)
    assert len(run._generators) == 8


ROW = [[1, 2, 3]]
WRONG = {
    "a row": (lambda run: run.logits([1, 2], 0.5), r"x_t of shape \(2,\): expected \(B, L\)"),
    "no rows": (lambda run: run.logits([], 0.5), "x_t of shape"),
    "ragged rows": (lambda run: run.logits([[1], [1, 2]], 0.5), "x_t: expected rows of equal length"),
    "fractions": (lambda run: run.logits([[1.0, 2.0]], 0.5), "x_t of float64: expected integer ids"),
    "words": (lambda run: run.logits([["a"]], 0.5), "x_t of <U1: expected integer ids"),
    "negative": (lambda run: run.logits([[-1]], 0.5), "x_t has the id -1: expected ids from 0 to"),
    "beyond": (lambda run: run.logits([[10**6]], 0.5), "x_t has the id 1000000: expected ids from 0 to"),
    "too long": (lambda run: run.logits(np.zeros((1, 9999), int), 0.5), r"x_t of shape \(1, 9999\): expected"),
    "late": (lambda run: run.logits(ROW, 1.5), r"t = 1.5: expected times in \[0, 1\]"),
    "no time": (lambda run: run.logits(ROW, float("nan")), r"t = nan: expected times"),
    "times": (lambda run: run.logits(ROW, [0.1, 0.2]), r"t of shape \(2,\): expected a number, or \(1,\)"),
    "time in words": (lambda run: run.logits(ROW, "now"), r"t: expected a number in \[0, 1\]"),
    "fewer than none": (lambda run: run.sample(-1), "num = -1: expected an integer from 0"),
    "half": (lambda run: run.sample(1.5), "num = 1.5: expected an integer from 0"),
    "true": (lambda run: run.sample(True), "num = True: expected an integer from 0"),
    "no steps": (lambda run: run.sample(1, steps=0), "steps = 0: expected an integer from 1"),
    "a function of nothing": (
        lambda run: run.sample(1, temperature=lambda: 1.0),
        r"temperature: expected a function of t, \(N,\)",
    ),
    "a function to words": (
        lambda run: run.sample(1, temperature=lambda t: "x"),
        "temperature: expected a function of t",
    ),
    "a large seed": (
        lambda run: run.sample(1, seed=2**32),
        "seed = 4294967296: expected an integer from 0 to 2147483647",
    ),
    "cold": (lambda run: run.sample(1, temperature=-1.0), "temperature = -1.0: expected a number of 0 or more"),
    "hot": (lambda run: run.sample(1, temperature=float("inf")), "temperature = inf: expected"),
    "nucleus": (lambda run: run.sample(1, top_p=0), r"top_p = 0.0: expected a number in \(0, 1\]"),
    "method": (lambda run: run.sample(1, method="fly"), "method = fly: "),
    "option": (lambda run: run.sample(1, method="corrector:iterations=1.5"), "method = corrector:iterations=1.5: "),
    "no draft": (lambda run: run.sample(1, draft=0), "draft = 0: expected an integer above 0"),
    "corrector": (lambda run: run.sample(1, corrector="polish"), "corrector = polish: corrector = 'polish': expected"),
    "sites": (lambda run: run.sample(1, corrector="gibbs:sites=0"), "corrector = gibbs:sites=0: "),
    "rate": (lambda run: run.sample(1, corrector="resample:rate=2"), "corrector = resample:rate=2: "),
    "guidance": (lambda run: run.sample(1, guidance=-1), "guidance = -1: "),
    "guidance of nothing": (lambda run: run.sample(1, guidance=2.0), "guidance = 2.0: .*expected a"),
    "seed": (lambda run: run.sample(1, seed="one"), "seed = 'one': expected an integer from 0"),
    "length": (lambda run: run.sample(1, length=0), "length = 0: expected an integer from 1 to"),
    "longer": (lambda run: run.sample(1, length=9999), "length = 9999: expected an integer from 1 to"),
    "rows": (lambda run: run.sample(1, batch_size=0), "batch_size = 0: expected an integer from 1"),
    "prompt": (lambda run: run.sample(1, prompt=5), "prompt = 5: expected a text"),
    "gap": (lambda run: run.sample(1, prompt="<gap:0>"), "prompt = '<gap:0>'"),
    "prompts": (lambda run: run.sample_tokens(1, prompts=["text"]), "prompts: expected Prompts of length"),
    "no blocks": (lambda run: run.likelihood(np.zeros((0, 4), int)), r"token_blocks of shape \(0, 4\): expected"),
    "no points": (lambda run: run.likelihood(ROW, time_points=0), "time_points = 0: expected an integer above 0"),
    "no id": (lambda run: run.likelihood([[run.tokenizer.vocab_size]]), "token_blocks has the id"),
    "float blocks": (lambda run: run.likelihood([[0.5]]), "token_blocks of float64: expected integer ids"),
    "likelihood's seed": (lambda run: run.likelihood(ROW, seed=-1), "seed = -1: expected an integer from 0"),
    "step": (lambda run: dfm_jax.load(run.folder, step=-1), "step = -1: expected an integer from 0"),
    "folder": (lambda run: dfm_jax.load(""), "folder = '': expected a path"),
}


@pytest.mark.parametrize("case", WRONG)
def test_nonsense_is_a_value_error_that_names_the_argument(case, run):
    call, line = WRONG[case]
    with pytest.raises(ValueError, match=f"^{line}") as error:
        call(run)
    assert "\n" not in str(error.value)
