"""Sizes that no machine has are refused before anything is allocated, and those that a machine has are not."""

import dataclasses

import jax
import pytest

import dfm_jax.run.sizes as sizes
from configs import quickstart
from dfm_jax import config
from dfm_jax.cli import command_line
from dfm_jax.data import vocabulary_size
from dfm_jax.experiment.problem import get_model_config
from dfm_jax.models.transformer import count_parameters
from dfm_jax.runtime.errors import UsageError
from dfm_jax.runtime.mesh import MeshShape, make_mesh


def settings(**changes):
    words = [f"--config.{name.replace('__', '.')}={value}" for name, value in changes.items()]
    return command_line.parse(["main.py", "--config=quickstart", *words]).config


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshShape(), jax.devices()[:1])


@pytest.mark.parametrize("name", ["quickstart", "uniform_gkl", "model_1_7b", "model_7b"])
def test_the_least_of_parameters_is_most_of_them(name):
    given = command_line.parse(["main.py", f"--config={name}"]).config
    whole = count_parameters(get_model_config(given, vocabulary_size(given.tokenizer.name)))
    assert 0.9 * whole < sizes.least_parameters(given) <= whole


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"training__batch_size": 2_000_000_000}, "training.batch_size = 2000000000"),
        ({"model__hidden_size": 2_000_000_000, "model__n_heads": 4}, "model.hidden_size = 2000000000"),
        ({"model__n_blocks": 2_000_000_000}, "model.n_blocks = 2000000000"),
        ({"model__mlp_ratio": 2_000_000_000}, "model.mlp_ratio = 2000000000"),
        ({"model__cond_dim": 2_000_000_000}, "model.cond_dim = 2000000000"),
        ({"model__length": 2_000_000_000}, "model.length = 2000000000"),
        ({"model__length": 4_000_000, "training__batch_size": 1}, "model.length = 4000000"),  # its square
        ({"tokenizer__name": "ids:999999999"}, "tokenizer.name = ids:999999999"),
        (
            {"eval__sample_batch_size": 2_000_000_000, "eval__num_samples": 2_000_000_000, "eval__perplexity": True},
            "eval.sample_batch_size = 2000000000",
        ),
    ],
)
def test_what_cannot_fit_is_named_with_what_it_needs_and_what_there_is(mesh, changes, named):
    given = settings(**changes)
    with pytest.raises(UsageError, match=rf"^config\.{named}: needs at least [\d,.]+ GiB on each device .* expected"):
        sizes.check(given, mesh, sizes.of_training(given, mesh))


def test_batches_of_evaluation_and_sampling(mesh):
    given = settings(eval__batch_size=2_000_000_000, sampling__batch_size=2_000_000_000)
    sizes.check(given, mesh, sizes.likelihood(given, mesh, blocks=100))  # a batch has no more rows than there are
    sizes.check(given, mesh, sizes.generation(given, mesh, "sampling.batch_size", num=16))
    with pytest.raises(UsageError, match=r"config\.eval\.batch_size = 2000000000: needs"):
        sizes.check(given, mesh, sizes.likelihood(given, mesh, blocks=10**9))
    with pytest.raises(UsageError, match=r"config\.sampling\.batch_size = 2000000000: needs"):
        sizes.check(given, mesh, sizes.generation(given, mesh, "sampling.batch_size", num=10**9))


def test_drafts_need_room_for_their_inputs(mesh):
    sizes_of = {
        draft: max(n.size for n in sizes.generation(settings(sampling__draft=draft), mesh, "sampling.batch_size", 16))
        for draft in (1, 8)
    }
    assert sizes_of[8] > sizes_of[1]
    given = settings(sampling__draft=2_000_000_000)
    with pytest.raises(UsageError, match=r"config\.sampling\.draft = 2000000000: needs"):
        sizes.check(given, mesh, sizes.generation(given, mesh, "sampling.batch_size", num=1))


def test_what_a_machine_can_hold_is_let_through(mesh, monkeypatch):
    given = config.freeze(quickstart.get_config())
    sizes.check(given, mesh, sizes.of_training(given, mesh))
    largest = max(need.size for need in sizes.of_training(given, mesh))
    for limit, fits in ((largest, True), (largest - 1, False), (None, True)):
        monkeypatch.setattr(sizes, "host_memory", lambda limit=limit: limit)
        if fits:
            sizes.check(given, mesh, sizes.of_training(given, mesh))
        else:
            with pytest.raises(UsageError):
                sizes.check(given, mesh, sizes.of_training(given, mesh))


def test_a_state_is_counted_once_a_copy(mesh):
    given = settings()
    state = {}
    for name, decay in (("adamw", 0.999), ("lion", 0.999), ("lion", 0.0)):
        optim = dataclasses.replace(given.optim, name=name, ema_decay=decay)
        state[name, decay] = sizes.training(dataclasses.replace(given, optim=optim), mesh)[0].size
    assert list(state.values()) == [4 * copies * sizes.least_parameters(given) for copies in (4, 3, 2)]


def test_the_memory_of_this_machine():
    memory = sizes.host_memory()
    assert memory is not None and 2**28 < memory < 2**50
