"""Options: those that the installed XLA knows, passed to every program, and never the end of a run."""

import ast
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from dfm_jax import config as configs
from dfm_jax.experiment import conditions
from dfm_jax.experiment.problem import get_model_config, stand_in
from dfm_jax.models import sharding
from dfm_jax.planning import driver, programs, targets
from dfm_jax.run.load import Run
from dfm_jax.runtime import cache, compiler
from dfm_jax.runtime.errors import UsageError, WorldError
from dfm_jax.runtime.mesh import AXES, MeshShape, make_mesh, replicated
from dfm_jax.training.loop import make_trainer

ROOT = pathlib.Path(__file__).resolve().parents[2]
CPU = jax.devices("cpu")[0]
KNOWN = "xla_gpu_enable_while_loop_double_buffering"  # to every version


def wish(name, value=True, purpose="nothing is lost"):
    return compiler.Wish(purpose, ((name, value),))


@pytest.fixture(autouse=True)
def notes(monkeypatch):
    """The notes of this test; none was said before."""
    said = []
    compiler._note_once.cache_clear()
    monkeypatch.setattr(compiler, "note", said.append)
    yield said
    compiler._note_once.cache_clear()


def test_the_installed_version_knows_one_spelling_of_each(notes):
    # A CPU has the same table of names as a GPU, and no use for these.
    for group in (compiler.ROUNDING, compiler.COLLECTIVES, compiler.DETERMINISTIC):
        assert len(compiler.known(group, CPU)) == len(group)
    assert notes == []


def test_an_unknown_option_is_left_out_with_one_note(notes):
    wanted = (wish("xla_gpu_no_such_thing", purpose="loops are slower"), wish(KNOWN))
    for _ in range(2):
        assert compiler.known(wanted, CPU) == {KNOWN: True}
    assert len(notes) == 1
    assert "does not take xla_gpu_no_such_thing: loops are slower" in notes[0] and jax.__version__ in notes[0]
    assert "\n" not in notes[0]


def test_a_value_that_is_not_taken_is_left_out_too(notes):
    assert compiler.known((wish("xla_gpu_autotune_level", "fast"),), CPU) == {}
    assert len(notes) == 1 and "fast" in notes[0]


def test_an_older_spelling_is_used_where_the_newer_is_unknown(notes):
    both = compiler.Wish("nothing", (("xla_gpu_of_tomorrow", "ON"), (KNOWN, True)))
    assert compiler.known((both,), CPU) == {KNOWN: True} and notes == []


def test_a_program_runs_without_the_option_that_is_unknown(monkeypatch, notes):
    monkeypatch.setattr(compiler, "wishes", lambda *_, **__: (wish("xla_gpu_no_such_thing"), wish(KNOWN)))
    assert compiler.jit(lambda x: x + 1, mesh=None)(jnp.ones(3, jnp.int32)).tolist() == [2, 2, 2]
    assert len(notes) == 1


def names(*arguments, **more):
    return {name for wish in compiler.wishes(*arguments, **more) for name, _ in wish.spellings}


def test_what_is_asked_for():
    assert names("cpu", communicates=True, deterministic=True) == set()
    assert names("tpu", communicates=True, deterministic=True) == set()
    for platform in ("gpu", "cuda"):
        always = names(platform, communicates=False, deterministic=False)
        assert always == {"xla_allow_excess_precision"}
        loops = names(platform, communicates=True, deterministic=False)
        assert "xla_gpu_pipeline_all_gather" in loops and KNOWN not in loops
        fixed = names(platform, communicates=False, deterministic=True)
        assert fixed - always == {"xla_gpu_deterministic_ops", "xla_gpu_autotune_level"}


# What may call jax.jit by itself; its docstring has to say why.
ALONE = {"dfm_jax/runtime/compiler.py", "dfm_jax/flow/samplers/solver.py", "dfm_jax/runtime/processes.py"}


def test_every_program_takes_its_options_from_one_place():
    found = set()
    for path in sorted((ROOT / "dfm_jax").rglob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            jits = isinstance(node, ast.Attribute) and node.attr in ("jit", "pjit", "pmap")
            if jits and getattr(node.value, "id", None) in ("jax", "nnx", "pjit", "eqx"):
                found.add(path.relative_to(ROOT).as_posix())
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "jax":
                assert not {"jit", "pjit", "pmap"} & {alias.name for alias in node.names}, path
    assert found <= ALONE, f"compile with dfm_jax.runtime.compiler.jit: {sorted(found - ALONE)}"
    for name in found - {"dfm_jax/runtime/compiler.py"}:
        text = (ROOT / name).read_text()
        assert "`runtime.compiler`" in text, f"{name} does not say why its programs take no options"


def tiny(**training):
    config = base.get_config()
    config.tokenizer.name, config.eval.judge = "ids:16", ""
    config.model.hidden_size, config.model.n_blocks, config.model.n_heads, config.model.length = 16, 1, 2, 8
    config.model.cond_dim, config.training.batch_size, config.eval.batch_size = 8, 4, 4
    for name, value in training.items():
        config.training[name] = value
    return config


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_field_reaches_every_program(monkeypatch, tmp_path, deterministic):
    asked = []

    def options(mesh, *, communicates=True, deterministic=False):
        asked.append((communicates, deterministic))
        return {}

    monkeypatch.setattr(compiler, "options", options)
    config = tiny(deterministic=deterministic)
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    trainer = make_trainer(config, 16, mesh, stand_in(config, 16))
    evaluator = programs.get_evaluator(trainer)
    assert asked == [(True, deterministic)] * 2  # the step and its first state

    def judge_of(model, tokenizer, **settings):
        return settings

    from dfm_jax.evaluation import evaluate
    from dfm_jax.evaluation.judge.perplexity import Judge

    asked.clear()
    monkeypatch.setattr(evaluate, "load_judge", lambda name: None)
    monkeypatch.setattr(evaluate, "get_tokenizer", lambda name: None)
    monkeypatch.setattr(evaluate, "Judge", judge_of)
    object.__setattr__(evaluator.settings, "judge", "some")
    assert evaluator._loaded[0]["deterministic"] is deterministic
    Judge(np.zeros(1, np.float32), None, mesh=mesh, deterministic=deterministic)
    for program in (evaluator._estimator, evaluator._evaluation_loss, evaluator._generator):
        assert program._program is not None
    run = Run(tmp_path, config, 0, None, trainer.problem, None, mesh)
    assert run._logits is not None
    # On a mesh that splits no parameter no loop of these exchanges anything.
    assert asked == [(False, deterministic)] * 6  # the judge has two: its scores and its features


def test_loops_exchange_data_where_parameters_are_split():
    devices = jax.devices()[:1]
    assert not sharding.splits_parameters(None)
    assert not sharding.splits_parameters(make_mesh(MeshShape(), devices))
    from jax.sharding import AbstractMesh

    for shape, splits in (((8, 1, 1), False), ((4, 2, 1), True), ((4, 1, 2), True)):
        assert sharding.splits_parameters(AbstractMesh(shape, AXES)) is splits


def test_deterministic_runs_do_without_cudnn():
    config = tiny(deterministic=True)
    conditions.check(configs.freeze(config))
    assert get_model_config(config, 16, "gpu").attention == "xla"
    assert get_model_config(tiny(), 16, "gpu").attention == "auto"
    for name in ("xla", "pallas"):
        config.model.attention = name
        conditions.check(configs.freeze(config))
        assert get_model_config(config, 16, "gpu").attention == name
    config.model.attention = "cudnn"
    with pytest.raises(UsageError, match=r"config\.model\.attention = cudnn: expected auto, xla or pallas") as caught:
        conditions.check(configs.freeze(config))
    assert "\n" not in str(caught.value)


@pytest.fixture
def uncached():
    """A compiler for a machine that is not here cannot read what it put in the tests' cache."""
    folder = jax.config.jax_compilation_cache_dir
    cache._forget()
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", folder)


def aot_mesh(text):
    from jax.experimental import topologies

    try:
        driver.check_installed()
    except WorldError as error:
        pytest.skip(str(error))
    target = targets.parse(text)
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=target.chip.description, topology=target.topology
    )
    return make_mesh(MeshShape(), topology.devices)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["h100:1", "h100:8", "a100:8", "b200:2x8"])
def test_gpus_take_every_option_that_is_asked_for(text, notes, uncached):
    mesh = aot_mesh(text)
    compiler.refusal.cache_clear()
    with jax.set_mesh(mesh):  # as a plan is made
        chosen = compiler.options(mesh, deterministic=True)
    assert chosen["xla_gpu_deterministic_ops"] is True and chosen["xla_gpu_autotune_level"] == 0
    assert any("all_gather" in name for name in chosen) == (mesh.size > 1)
    assert chosen["xla_allow_excess_precision"] is False
    assert len(chosen) == (6 if mesh.size > 1 else 3) and notes == []


@pytest.mark.slow
def test_deterministic_scatters_are_sorted_first(uncached):
    """An embedding's gradient adds rows of equal ids: by atomics in any order, or deterministically."""
    mesh = aot_mesh("h100:1")

    def gradient(table, ids):
        return jax.grad(lambda table: jnp.square(table[ids]).sum())(table)

    whole = replicated(mesh)
    table = jax.ShapeDtypeStruct((512, 64), jnp.float32, sharding=whole)
    ids = jax.ShapeDtypeStruct((4096,), jnp.int32, sharding=whole)

    def text(deterministic):
        program = compiler.jit(gradient, mesh=mesh, deterministic=deterministic)
        with jax.set_mesh(mesh):
            return program.lower(table, ids).compile().as_text()

    assert "unique_indices=true" not in text(False)
    assert "unique_indices=true" in text(True)
