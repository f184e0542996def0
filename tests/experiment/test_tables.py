"""A run is whole in its folder: the tables of its path are copied there, and are what evaluates it."""

import shutil

import numpy as np
import pytest

import dfm_jax
from dfm_jax import cli
from dfm_jax import config as configs
from dfm_jax.cli import command_line
from dfm_jax.experiment import tables
from dfm_jax.runtime import files
from dfm_jax.runtime.errors import WorldError

TINY = [
    *("optim.n_iters=2", "optim.warmup=1", "training.batch_size=4", "training.eval_freq=0", "data.num_workers=1"),
    *("model.hidden_size=32", "model.cond_dim=16", "model.length=16", "model.n_blocks=1", "model.n_heads=2"),
    *("eval.elbo=False", "eval.perplexity=False", "flow.sampling_steps=2", "sampling.batch_size=2"),
]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 60)
    return folder


def train(config: str, workdir, text, *fields: str) -> None:
    place = [f"data.train={text}/text.txt", f"data.valid={text}/text.txt", f"data.cache_dir={text}"]
    flags = [f"--config.{field}" for field in (*TINY, *place, "tokenizer.name=bytes", *fields)]
    assert (
        cli.run(command_line.parse(["main.py", f"--config=configs/{config}.py", f"--workdir={workdir}", *flags])) == 0
    )


def bound(folder) -> float:
    run = dfm_jax.load(folder)
    (value, *_) = run.likelihood(np.full((2, 16), 101, np.int32), time_points=4).values()
    return value.nats_per_token


@pytest.mark.slow
def test_exponents_and_embeddings_of_a_file_are_copied(tmp_path, text):
    rng = np.random.default_rng(0)
    for config, field, shape in (("mask_genmd4", "exponents", (257,)), ("metric_ko", "embeddings", (257, 8))):
        origin, folder = tmp_path / f"{field}.npy", tmp_path / config
        np.save(origin, rng.uniform(0.5, 2.0, shape))
        train(config, folder, text, f"flow.{field}={origin}")
        before, tokens = bound(folder), dfm_jax.load(folder).sample_tokens(2)
        assert np.isfinite(before)
        np.save(origin, rng.uniform(0.5, 2.0, shape))  # changed: the run is what it was
        assert bound(folder) == before
        origin.unlink()  # gone
        moved = tmp_path / f"{config}-moved"
        shutil.move(folder, moved)
        assert bound(moved) == before
        np.testing.assert_array_equal(dfm_jax.load(moved).sample_tokens(2), tokens)


@pytest.mark.slow
def test_embeddings_of_a_run_and_the_law_of_a_corpus_are_copied(tmp_path, text):
    train("unigram_ko", tmp_path / "first", text)
    train("metric_ko", tmp_path / "second", text, f"flow.embeddings={tmp_path / 'first'}", "flow.beta=constant_speed")
    run = dfm_jax.load(tmp_path / "second")
    table = np.asarray(dfm_jax.load(tmp_path / "first").model.embedding.table[...])[:257]
    table = table / np.linalg.norm(table, axis=1, keepdims=True)
    np.testing.assert_allclose(np.load(tmp_path / "second/tables/embeddings.npy"), table, rtol=1e-6)
    np.testing.assert_allclose(np.load(tmp_path / "first/tables/law.npy").sum(), 1.0)
    first, second = bound(tmp_path / "first"), bound(tmp_path / "second")
    assert np.isfinite([first, second]).all() and run.config.flow.beta == "constant_speed"
    config = configs.from_json((tmp_path / "first/config.json").read_text(), "config.json")
    config = configs.replace(config, {f"data.{field}": str(tmp_path / "nowhere.txt") for field in ("train", "valid")})
    np.testing.assert_array_equal(
        tables.of_run(config, 257, tmp_path / "first")["law"], np.load(tmp_path / "first/tables/law.npy")
    )
    shutil.rmtree(tmp_path / "first")
    assert bound(tmp_path / "second") == second


def test_a_copy_that_was_changed_is_refused_and_another_origin_is_read(tmp_path):
    config = configs.load_file("configs/mask_genmd4.py")
    origin, other = tmp_path / "w.npy", tmp_path / "other.npy"
    np.save(origin, np.full(257, 2.0))
    np.save(other, np.full(257, 3.0))
    config.flow.exponents = str(origin)
    found = tables.of_run(config, 257, tmp_path)
    tables.keep(found, config, tmp_path)
    config.flow.exponents = str(other)
    np.testing.assert_array_equal(tables.of_run(config, 257, tmp_path)["exponents"], np.load(other))
    config.flow.exponents = str(origin)
    files.save_array(tmp_path / "tables/exponents.npy", np.full(257, 4.0))
    with pytest.raises(WorldError, match=r"exponents\.npy: expected the file that the run wrote, with sha256"):
        tables.of_run(config, 257, tmp_path)
