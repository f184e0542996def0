"""Updates that are not finite: the last good checkpoint stays, the error names it, its advice works when followed."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

import runs
from dfm_jax import cli, flow
from dfm_jax.checkpoints.store import Checkpoints
from dfm_jax.cli import command_line
from dfm_jax.runtime.errors import WorldError
from dfm_jax.training import step as step_module

SMALL = runs.TINY | {
    "data.train": "text.txt",
    "data.valid": "text.txt",
    "training.snapshot": 1,
    "training.eval_freq": 0,
    "training.max_bad_steps": 4,
    "optim.n_iters": 6,
    "optim.warmup": 1,
    "optim.lr": 1e-3,
    "model.n_blocks": 1,
    "checkpoint.keep_last": 1,
}


@pytest.fixture(autouse=True)
def in_a_folder_with_a_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("The same text, a hundred times over. " * 100)


def train(**fields) -> int:
    overrides = SMALL | {name.replace("__", "."): value for name, value in fields.items()}
    return cli.run(command_line.parse(runs.command("run", "data", overrides)[1:]))


def poison(monkeypatch, *updates: int) -> None:
    """Gives these updates times that are NaN."""
    healthy = step_module.corrupt

    def poisoned(batch, step, *rest, **options):
        noisy = healthy(batch, step, *rest, **options)
        bad = jnp.isin(step + 1, jnp.asarray(updates, jnp.int32))
        return noisy._replace(time=flow.Time(*(jnp.where(bad, jnp.nan, part) for part in noisy.time)))

    monkeypatch.setattr(step_module, "corrupt", poisoned)


def folders() -> list[str]:
    return sorted(path.name for path in pathlib.Path("run/checkpoints").iterdir() if path.name != ".incoming")


@pytest.mark.slow
def test_a_rate_that_is_too_high_and_then_a_lower_one(tmp_path):
    """Update 7 is finite and makes parameters that are not: its checkpoint is not the good one."""
    assert train() == 0
    assert folders() == ["6"]
    with pytest.raises(WorldError) as error:
        train(optim__lr=1e38, optim__n_iters=40)
    line = str(error.value)
    assert line.startswith("config.training.max_bad_steps = 4: the last 4 updates, up to step 11, had a non-finite")
    assert "the last good checkpoint is step 6; expected: the same command with a lower optim.lr" in line
    assert folders() == ["6", "7.diverged"]
    assert train(optim__n_iters=12) == 0
    assert folders() == ["12", "7.diverged"]
    with Checkpoints("run/checkpoints") as checkpoints:
        _, state = checkpoints.restore(checkpoints.arrays(12))
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in state.values())


@pytest.mark.slow
def test_a_rate_that_is_too_high_from_the_first_step():
    with pytest.raises(WorldError, match=r"the last good checkpoint is none"):
        train(optim__lr=1e38, optim__n_iters=40)
    assert folders() == ["1.diverged"]
    assert train() == 0


@pytest.mark.slow
def test_a_run_all_of_whose_updates_were_not_finite_fails(monkeypatch):
    poison(monkeypatch, 1, 2, 3, 4, 5, 6)
    with pytest.raises(WorldError, match=r"the last 6 updates, up to step 6, had .* checkpoint is none"):
        train(training__max_bad_steps=100)
    assert folders() == []


@pytest.mark.slow
def test_a_run_that_ends_with_updates_that_were_not_finite_fails_and_keeps_what_was_good(monkeypatch):
    poison(monkeypatch, 5, 6)
    with pytest.raises(WorldError, match=r"the last 2 updates, up to step 6, had .* checkpoint is step 3"):
        train(checkpoint__keep_last=2)
    assert folders() == ["3", "4.diverged"]


@pytest.mark.slow
def test_a_checkpoint_that_was_due_amid_bad_updates_comes_after_them(monkeypatch):
    """And the count of bad updates that an earlier version saved does not end the run that goes on."""
    poison(monkeypatch, 3, 4, 9)
    assert train(training__snapshot=3, checkpoint__keep_every=1) == 0
    assert folders() == ["5", "6"]
    with Checkpoints("run/checkpoints", keep_last=9) as checkpoints:
        step, arrays = checkpoints.restore(checkpoints.arrays(6))
        arrays |= {"bad_steps": jnp.int32(3), "step": jnp.int32(8)}
        checkpoints.save(8, arrays, metadata=checkpoints.metadata())
    assert step == 6
    assert train(optim__n_iters=10) == 0
    lines = runs.logged(pathlib.Path("run"))
    assert [line["train/bad_steps"] for line in lines if "train/bad_steps" in line][-2:] == [1, 0]
