"""`checkpoint.restore_from`: another network whose arrays have the same shapes is taken only when that is said."""

import pathlib

import pytest

import dfm_jax
from dfm_jax import cli
from dfm_jax.checkpoints.store import Checkpoints
from dfm_jax.cli import command_line
from dfm_jax.config import NETWORK, NEVER_CHANGED
from dfm_jax.experiment import conditions, tables
from dfm_jax.experiment.problem import get_problem
from dfm_jax.run.begin import first_state
from dfm_jax.runtime.errors import UsageError
from dfm_jax.runtime.mesh import MeshShape, make_mesh
from dfm_jax.training.loop import make_trainer

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
# 37 states of the uniform source, 38 with the mask: both are padded to 128 rows.
MODEL = {"hidden_size": 32, "cond_dim": 16, "length": 12, "n_blocks": 2, "n_heads": 2}
SHAPE = [f"--config.model.{name}={value}" for name, value in MODEL.items()]


@pytest.fixture(scope="module")
def origin(tmp_path_factory) -> pathlib.Path:
    """A run of uniform source on 37 ids."""
    folder = tmp_path_factory.mktemp("origin") / "run"
    words = ["--mode=import", f"--from={FIXTURES / 'checkpoint_uniform.pth'}", f"--workdir={folder}"]
    words += ["--config=configs/uniform_gkl.py", "--config.tokenizer.name=ids:37", *SHAPE]
    assert cli.run(command_line.parse(["main.py", *words])) == 0
    return folder


def start(origin: pathlib.Path, tmp_path: pathlib.Path, *changes: str):
    """The first state of a new run with these fields, and the weights of `origin`."""
    words = ["--config=configs/uniform_gkl.py", "--config.tokenizer.name=ids:37", *SHAPE]
    words += [f"--config.checkpoint.restore_from={origin}", f"--workdir={tmp_path / 'new'}"]
    made = command_line.parse(["main.py", *words, *(f"--config.{change}" for change in changes)]).config
    conditions.check(made)
    vocab_size = int(made.tokenizer.name.removeprefix("ids:"))
    problem = get_problem(made, vocab_size, **tables.of_run(made, vocab_size, tmp_path))
    trainer = make_trainer(made, vocab_size, make_mesh(MeshShape()), problem)
    return first_state(trainer, Checkpoints(tmp_path / "new" / "checkpoints", keep_last=2))


CHANGES = {
    "flow.source_distribution": "mask",
    "flow.exponent": "2.0",
    "model.time_scale": "1000.0",
    "model.time_input": "kappa",
    "model.parametrization": "leave_one_out",
}


@pytest.mark.parametrize("field", CHANGES)
def test_another_meaning_is_refused_by_name(field, origin, tmp_path):
    with pytest.raises(UsageError) as error:
        start(origin, tmp_path, f"{field}={CHANGES[field]}")
    line = str(error.value)
    assert f"config.{field} = {CHANGES[field]}" in line and f"which {origin} was trained with" in line
    assert f"--config.checkpoint.restore_changed={field}" in line and "\n" not in line


def test_what_is_named_is_taken(origin, tmp_path):
    """With the mask the origin's switch for its logit counts as well, which the import had turned off."""
    with pytest.raises(UsageError) as error:
        start(origin, tmp_path, "flow.source_distribution=mask")
    named = str(error.value).split("restore_changed=")[1].split(" ")[0]
    assert named == "flow.source_distribution,model.suppress_mask_logit"
    state = start(origin, tmp_path, "flow.source_distribution=mask", f"checkpoint.restore_changed={named}")
    before = dfm_jax.load(origin).model.embedding.table[...]
    assert (state.model.embedding.table[...] == before).all() and int(state.step) == 0


@pytest.mark.parametrize("change", ["tokenizer.name=ids:36", "model.n_heads=4"])
def test_tokenizer_and_heads_never_change(change, origin, tmp_path):
    field = change.split("=")[0]
    with pytest.raises(UsageError, match=rf"config.{field} = .*\({field} cannot change\)"):
        start(origin, tmp_path, change)
    with pytest.raises(UsageError, match=rf"restore_changed = {field}: expected some of flow.path"):
        start(origin, tmp_path, change, f"checkpoint.restore_changed={field}")


def test_names_that_change_nothing_are_refused(origin, tmp_path):
    with pytest.raises(UsageError, match=r"restore_changed = optim.lr: expected some of"):
        start(origin, tmp_path, "checkpoint.restore_changed=optim.lr")
    with pytest.raises(UsageError, match="names of fields"):
        start(origin, tmp_path, "checkpoint.restore_changed=source")
    with pytest.raises(UsageError, match=r"without checkpoint.restore_from"):
        start(origin, tmp_path, "checkpoint.restore_changed=flow.exponent", "checkpoint.restore_from=")
    assert set(NEVER_CHANGED) < set(NETWORK)


def test_the_same_network_needs_no_word(origin, tmp_path):
    assert int(start(origin, tmp_path, "optim.lr=1e-4", "model.dropout=0.0").step) == 0
