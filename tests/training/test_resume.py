"""What a run may be continued with."""

import copy
import dataclasses

import pytest

from configs import published
from dfm_jax import config as configs
from dfm_jax.runtime.errors import WorldError
from dfm_jax.training import resume


@pytest.fixture
def config():
    return published.get_config().to_dict()


def changed(config, **fields):
    config = copy.deepcopy(config)
    for field, value in fields.items():
        group, name = field.split("__")
        config[group][name] = value
    return config


def test_the_same_config_is_accepted_silently_through_json(config):
    assert resume.check(changed(config, eval__corpora=["wikitext103"]), config, workdir="runs/a") == []
    assert resume.check(config, configs.Config(), workdir="runs/a") == []


def test_safe_changes_are_noted(config):
    new = changed(
        config, optim__n_iters=7, mesh__fsdp=4, logging__log_freq=1, training__snapshot=5, checkpoint__keep_last=9
    )
    assert resume.check(config, new, workdir="w", saved_fingerprint="a", fingerprint="a") == [
        "checkpoint.keep_last: 2 -> 9",
        "logging.log_freq: 100 -> 1",
        "mesh.fsdp: 1 -> 4",
        "optim.n_iters: 1000000 -> 7",
        "training.snapshot: 2000 -> 5",
    ]


def test_every_unsafe_change_is_named_with_both_values(config):
    new = changed(config, model__n_blocks=6, training__seed=1, tokenizer__name="bytes", logging__log_freq=1)
    with pytest.raises(WorldError) as error:
        resume.check(config, new, workdir="runs/a", saved_fingerprint="abc", fingerprint="def", done=1)
    line = str(error.value)
    assert line.startswith("workdir = runs/a: expected the config that its run was begun with, ") and "\n" not in line
    assert line.endswith(
        "changed are model.n_blocks: 12 -> 6; tokenizer.name: 'gpt2' -> 'bytes' (may change to the same "
        "files at another place (hf:)); training.seed: 42 -> 1; "
        "data.train: fineweb-edu has other tokens (abc -> def)"
    )


def test_a_corpus_that_moved_is_the_same_corpus(config):
    new = changed(config, data__train="fineweb-edu@/elsewhere")
    assert len(resume.check(config, new, workdir="w", saved_fingerprint="a", fingerprint="a")) == 1
    assert len(resume.check(config, new, workdir="w")) == 1  # not known yet


@pytest.mark.parametrize("pair", [(0.0, 0.99), (0.99, 0.0)])
def test_an_average_cannot_begin_or_end_in_mid_run(config, pair):
    old, new = (changed(config, optim__ema_decay=decay) for decay in pair)
    with pytest.raises(WorldError, match=r"optim\.ema_decay: .* \(may change between values above 0\)"):
        resume.check(old, new, workdir="w")
    assert resume.check(changed(config, optim__ema_decay=0.9), changed(config, optim__ema_decay=0.99), workdir="w")


def test_a_run_cannot_end_before_the_steps_that_it_has_done(config):
    new = changed(config, optim__n_iters=100)
    assert resume.check(config, new, workdir="w", done=100) == ["optim.n_iters: 1000000 -> 100"]
    with pytest.raises(WorldError, match=r"optim\.n_iters: 1000000 -> 100 \(may change to no less than the steps"):
        resume.check(config, new, workdir="w", done=101)


def test_a_field_that_the_run_should_have_is_missed(config):
    old = changed(config)
    del old["flow"]["coupling"]
    with pytest.raises(WorldError, match=r"w: its checkpoint's config\.flow\.coupling = \(missing\): expected one of"):
        resume.check(old, config, workdir="w")


def test_a_field_newer_than_the_run_had_its_default(config, monkeypatch):
    field = dataclasses.replace(configs.TABLE["flow.coupling"], since="9.0")
    monkeypatch.setitem(configs.TABLE, "flow.coupling", field)
    old = changed(config)
    del old["flow"]["coupling"]
    assert resume.check(old, config, workdir="w") == []
    with pytest.raises(WorldError, match=r"flow\.coupling: 'independent' -> 'conditional'"):
        resume.check(old, changed(config, flow__coupling="conditional"), workdir="w", done=1)
    assert len(resume.check(old, changed(config, flow__coupling="conditional"), workdir="w")) == 1  # of new weights


def test_what_is_learned_from_what_and_in_which_order_stays():
    fixed = {name for name, field in configs.TABLE.items() if field.continues is configs.FIXED}
    assert {"model.hidden_size", "flow.loss_function", "training.batch_size", "training.seed", "optim.name"} <= fixed
    # What makes a checkpoint another network cannot change in mid-run either.
    # (The files of a tokenizer may lie elsewhere; they stay the same.)
    assert set(configs.NETWORK) - {"tokenizer.name"} <= fixed
    assert {"tokenizer.name", "model.n_heads"} <= set(configs.NETWORK)
