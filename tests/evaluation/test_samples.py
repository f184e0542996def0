"""A sample set's files."""

import json

import jax
import numpy as np
from flax import nnx
from toy_network import make_problem

from dfm_jax import flow
from dfm_jax.data import get_tokenizer
from dfm_jax.evaluation.generation import Generator, SamplingSettings, describe_evaluations
from dfm_jax.evaluation.prompts import parse_prompt
from dfm_jax.evaluation.report.samples import sample_set, write_samples
from dfm_jax.models.transformer import Transformer, TransformerConfig

BYTES = get_tokenizer("bytes")


def test_batches_append_and_nothing_is_overwritten(tmp_path):
    problem = make_problem(flow.MaskSource(BYTES.vocab_size))
    model = jax.jit(lambda: Transformer(TransformerConfig(258, 16, 8, 8, n_blocks=1, n_heads=2), rngs=nnx.Rngs(0)))()
    generator = Generator(problem, SamplingSettings(8, 4), batch_size=2, frames=3)
    prompt = parse_prompt("ab<gap:2>c", BYTES, 8)
    seen: list[int] = []
    stem = sample_set(tmp_path / "samples", 7)
    tokens = write_samples(
        stem, generator, model, 5, BYTES, prompts=[prompt], settings={"step": 7}, progress=seen.append
    ).tokens
    assert tokens.shape == (5, 8) and seen == [2, 4, 5]
    lines = [json.loads(line) for line in stem.with_suffix(".jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(5))
    np.testing.assert_array_equal([line["tokens"] for line in lines], tokens)
    assert lines[0]["settings"] | {"method": "exact", "steps": 4, "step": 7} == lines[0]["settings"]
    for line, row in zip(lines, tokens, strict=True):
        spent = line["evaluations"]
        assert spent["head_rows"] == 5 and 1 <= spent["trunk"] == spent["sequential"] == spent["used"] <= 4
        assert line["text"] == BYTES.decode(row) and line["text"].startswith("ab")
    text = stem.with_suffix(".txt").read_text()
    assert text.count("=== ") == 5
    page = stem.with_suffix(".html").read_text()
    assert page.count('"history"') == 5 and '"fixed":[0,1,4]' in page

    again = sample_set(tmp_path / "samples", 7)
    assert again.name == "step_7-2"
    write_samples(again, generator, model, 1, BYTES, trim=True)
    assert stem.with_suffix(".txt").read_text() == text
    assert sample_set(tmp_path / "samples", 7).name == "step_7-3"
    assert sample_set(tmp_path / "samples", 8).name == "step_8"
    assert write_samples(None, generator, model, 1, BYTES).tokens.shape == (1, 8)


def test_what_samples_took_is_one_line():
    four, six = np.array([4, 6]), np.array([10, 20])
    assert describe_evaluations(flow.Evaluations(four, six, four, four)) == (
        "5.0 evaluations each (4 to 6); 15 rows of the head"
    )
    drafted = describe_evaluations(flow.Evaluations(np.array([8, 12]), six, np.array([2, 2]), four))
    assert drafted.startswith(
        "10.0 evaluations each (8 to 12), in 2.0 windows one after the other, 2.50 accepted in each;"
    )
