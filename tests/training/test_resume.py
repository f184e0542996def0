"""What a run may be continued with."""

import copy

import pytest

from configs import base
from dfm_jax.errors import WorldError
from dfm_jax.training import resume


@pytest.fixture
def config():
    return base.get_config().to_dict()


def changed(config, **fields):
    config = copy.deepcopy(config)
    for field, value in fields.items():
        group, name = field.split("__")
        config[group][name] = value
    return config


def test_the_same_config_is_accepted_silently_through_json(config):
    assert resume.check(changed(config, eval__corpora=["wikitext103"]), config, workdir="runs/a") == []


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
        resume.check(config, new, workdir="runs/a", saved_fingerprint="abc", fingerprint="def")
    line = str(error.value)
    assert line.startswith("workdir=runs/a: accepted the config that its run was begun with, ") and "\n" not in line
    assert line.endswith(
        "changed are model.n_blocks: 12 -> 6; tokenizer.name: 'gpt2' -> 'bytes'; training.seed: 42 -> 1; "
        "data.train: fineweb-edu has other tokens (abc -> def)"
    )


def test_a_corpus_that_moved_is_the_same_corpus(config):
    new = changed(config, data__train="fineweb-edu@/elsewhere")
    assert len(resume.check(config, new, workdir="w", saved_fingerprint="a", fingerprint="a")) == 1
    assert len(resume.check(config, new, workdir="w")) == 1  # not known yet


@pytest.mark.parametrize("pair", [(0.0, 0.99), (0.99, 0.0)])
def test_an_average_cannot_begin_or_end_in_mid_run(config, pair):
    old, new = (changed(config, optim__ema_decay=decay) for decay in pair)
    with pytest.raises(WorldError, match=r"optim\.ema_decay"):
        resume.check(old, new, workdir="w")
    assert resume.check(changed(config, optim__ema_decay=0.9), changed(config, optim__ema_decay=0.99), workdir="w")


def test_fields_that_only_one_of_the_two_has_are_refused(config):
    old = changed(config)
    del old["flow"]["coupling"]
    with pytest.raises(WorldError, match=r"flow\.coupling: None -> 'independent'"):
        resume.check(old, config, workdir="w")


def test_every_accepted_pattern_names_a_field(config):
    fields = [f"{group}.{name}" for group in config for name in config[group]]
    for pattern in resume.ACCEPTED:
        assert any(resume.fnmatch.fnmatchcase(field, pattern) for field in fields), pattern
    refused = {field for field in fields if not resume.is_accepted(field, config, config)}
    assert {"model.hidden_size", "flow.loss_function", "training.batch_size", "optim.name", "data.train"} - refused == {
        "data.train"
    }
