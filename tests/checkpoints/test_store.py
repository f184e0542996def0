"""Checkpoints come back bit for bit, and a damaged one is never used."""

import hashlib
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dfm_jax.checkpoints import checksums
from dfm_jax.checkpoints.store import Checkpoints
from dfm_jax.runtime import files
from dfm_jax.runtime.errors import WorldError


def make_state(seed: int) -> dict:
    """Two leaves of each kind that a run has: matrices, a stack, a count, moments, low precision."""
    rng = np.random.default_rng(seed)
    model = {
        "blocks": {"kernel": jnp.asarray(rng.normal(size=(3, 8, 16)), jnp.float32)},
        "head": {"kernel": jnp.asarray(rng.normal(size=(16, 128)), jnp.bfloat16)},
    }
    optimizer = optax.scale_by_adam(mu_dtype=jnp.float32)
    return {"step": jnp.int32(seed), "model": model, "opt_state": optimizer.init(model), "ema": None}


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture
def saved(tmp_path):
    """A folder with checkpoints of steps 10 and 20."""
    with Checkpoints(tmp_path / "run", keep_last=5) as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, make_state(step), metadata={"config": {"a": [step, 2.5, None]}})
    return tmp_path / "run"


def test_comes_back_bit_for_bit_with_its_metadata(saved):
    checkpoints = Checkpoints(saved, keep_last=5)
    assert checkpoints.steps() == [10, 20] and checkpoints.latest_step() == 20
    step, state = checkpoints.restore(abstract(make_state(0)))
    assert step == 20
    assert_same(state, make_state(20))
    assert checkpoints.metadata(20) == checkpoints.metadata() == {"config": {"a": [20, 2.5, None]}}
    step, state = checkpoints.restore(abstract(make_state(0)), step=10)
    assert step == 10
    assert_same(state, make_state(10))


def test_the_state_may_be_donated_right_after_save(tmp_path):
    advance = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2 + 1, tree), donate_argnums=0)
    with Checkpoints(tmp_path, keep_last=9) as checkpoints:
        state = {"w": jnp.arange(300_000, dtype=jnp.float32)}
        for step in range(1, 5):
            state = advance(state)
            checkpoints.save(step, state)
    expected = np.arange(300_000, dtype=np.float32)
    for step in range(1, 5):
        expected = expected * np.float32(2) + np.float32(1)
        np.testing.assert_array_equal(Checkpoints(tmp_path).restore(abstract(state), step)[1]["w"], expected)


def test_a_part_is_read_alone_and_cast(saved):
    checkpoints = Checkpoints(saved)
    wanted = {"head": {"kernel": jax.ShapeDtypeStruct((16, 128), jnp.float32)}}
    step, part = checkpoints.restore_subtree(wanted, "model")
    assert step == 20
    expected = make_state(20)["model"]["head"]["kernel"].astype(jnp.float32)
    np.testing.assert_array_equal(part["head"]["kernel"], expected)
    assert checkpoints.restore_subtree(wanted, "ema", "model")[0] == 20  # the first that there is
    assert checkpoints.restore_subtree(wanted, "model", step=10)[0] == 10
    with pytest.raises(WorldError, match=r"ema\.head\.kernel is missing"):
        checkpoints.restore_subtree(wanted, "ema")
    assert checkpoints.arrays(20)["model.head.kernel"].dtype == jnp.bfloat16


def test_another_model_is_refused_with_the_differences(saved):
    other = make_state(0)
    other["model"]["head"]["kernel"] = jnp.zeros((16, 256), jnp.bfloat16)
    other["model"]["blocks"]["kernel"] = jnp.zeros((3, 8, 16), jnp.bfloat16)
    other["extra"] = other.pop("step")
    with pytest.raises(WorldError) as error:
        Checkpoints(saved, keep_last=5).restore(abstract(other))
    assert "expected a checkpoint of this model; extra is missing; " in str(error.value)
    assert "model.blocks.kernel is float32[3, 8, 16] and not bfloat16[3, 8, 16]" in str(error.value)
    assert "model.head.kernel is bfloat16[16, 128] and not bfloat16[16, 256]" in str(error.value)
    assert "step is not in this model" in str(error.value) and "\n" not in str(error.value)


def test_keeps_the_newest_and_every_kth(tmp_path):
    with Checkpoints(tmp_path, keep_last=2, keep_every=30) as checkpoints:
        for step in range(10, 110, 10):
            checkpoints.save(step, {"w": jnp.zeros(4)}, block=True)
            assert not checkpoints.save(step, {"w": jnp.ones(4)})  # it is there
        assert checkpoints.steps() == [30, 60, 90, 100]
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        checkpoints.save(110, {"w": jnp.zeros(4)})
    assert checkpoints.steps() == [110]
    assert [path.name for path in tmp_path.iterdir() if path.name[0] != "."] == ["110"]


def test_a_reader_changes_nothing(saved):
    (saved / ".incoming" / "30.orbax-checkpoint-tmp").mkdir(parents=True)
    damage_byte(largest_file(saved / "20"))
    before = sorted(saved.rglob("*"))
    reader = Checkpoints(saved)
    assert reader.restore(abstract(make_state(0)))[0] == 10
    with pytest.raises(ValueError, match="only reads"):
        reader.save(30, make_state(30))
    assert sorted(saved.rglob("*")) == before
    assert Checkpoints(saved / "nothing").steps() == [] and not (saved / "nothing").exists()


def test_leftovers_of_a_killed_save_are_removed_and_the_step_saved_again(saved):
    shutil.copytree(saved / "20", saved / ".incoming" / "30")  # committed by orbax, killed before its checksums
    (saved / ".incoming" / "30" / checksums.NAME).unlink()
    (saved / ".incoming" / "40.orbax-checkpoint-tmp").mkdir()
    shutil.copytree(saved / "10", saved / ".trash" / "10")
    with Checkpoints(saved, keep_last=5) as checkpoints:
        assert checkpoints.steps() == [10, 20]
        assert not (saved / ".incoming").exists() and not (saved / ".trash").exists()
        checkpoints.save(30, make_state(30))
    assert_same(checkpoints.restore(abstract(make_state(0)))[1], make_state(30))


def test_nothing_there_is_an_error(tmp_path, saved):
    with pytest.raises(WorldError, match="none is left"):
        Checkpoints(tmp_path / "empty", keep_last=1).restore(abstract(make_state(0)))
    with pytest.raises(WorldError, match=r"step = 15: expected a checkpoint in .*run: 10, 20"):
        Checkpoints(saved).restore(abstract(make_state(0)), step=15)
    with pytest.raises(WorldError, match="none is left"):
        Checkpoints(tmp_path / "empty").metadata()
    with pytest.raises(WorldError, match="step = 15: expected"):
        Checkpoints(saved).metadata(15)


def damage_byte(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def truncate(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = (damage_byte, truncate, pathlib.Path.unlink)


def largest_file(folder: pathlib.Path) -> pathlib.Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_to_any_file_is_reported_and_the_one_before_used(saved, tmp_path, capfd, damage):
    names = [path.relative_to(saved / "20") for path in (saved / "20").rglob("*") if path.is_file()]
    assert len(names) >= 8
    for number, name in enumerate(n for n in names if (saved / "20" / n).stat().st_size):
        run = tmp_path / str(number)
        shutil.copytree(saved, run)
        damage(run / "20" / name)
        in_use = 10 if name.name in ("_CHECKPOINT_METADATA", checksums.NAME) else 20
        assert Checkpoints(run).metadata()["config"]["a"][0] == in_use
        step, state = Checkpoints(run, keep_last=5).restore(abstract(make_state(0)))
        assert step == 10
        assert_same(state, make_state(10))
        told = capfd.readouterr().err
        assert f"warning: checkpoint 20 in {run} is damaged: " in told and name.as_posix() in told
        assert sorted(path.name for path in run.iterdir()) == ["10", "20.damaged"]


def test_a_run_goes_on_past_a_damaged_checkpoint(saved):
    """Step 20 is saved again, and the damaged one does not count as one of those to keep."""
    truncate(largest_file(saved / "20"))
    with Checkpoints(saved, keep_last=1) as checkpoints:
        assert checkpoints.restore(abstract(make_state(0)))[0] == 10
        checkpoints.save(15, make_state(15), block=True)
        assert checkpoints.steps() == [15]
        checkpoints.save(20, make_state(20))
    assert_same(Checkpoints(saved).restore(abstract(make_state(0)))[1], make_state(20))


def test_with_none_left_intact_nothing_is_touched(saved, capfd):
    for step in ("10", "20"):
        truncate(largest_file(saved / step))
    for _ in range(2):  # not a fresh start the second time either
        checkpoints = Checkpoints(saved, keep_last=5)
        assert checkpoints.latest_step() == 20
        with pytest.raises(WorldError, match=r"none is left \(20: .* instead of .*; 10: .*\)"):
            checkpoints.restore(abstract(make_state(0)))
    assert sorted(path.name for path in saved.iterdir()) == ["10", "20"]


def test_one_that_is_asked_for_and_damaged_is_one_line(saved, capfd):
    truncate(largest_file(saved / "10"))
    with pytest.raises(WorldError, match=r"run.10: expected an intact one \(10: .*\); --step=N takes another: 20$"):
        Checkpoints(saved).restore(abstract(make_state(0)), step=10)
    assert not capfd.readouterr().err


def test_a_failed_save_warns_and_the_next_one_succeeds(saved, monkeypatch, capfd):
    checkpoints = Checkpoints(saved, keep_last=2)

    def no_room(folder):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checksums, "write", no_room)
        assert checkpoints.save(30, make_state(30))
        assert checkpoints.save(40, make_state(40))  # the failure before it does not raise
        with pytest.raises(WorldError, match=r"40: expected a disk with room for it"):
            checkpoints.wait()
        with pytest.raises(WorldError, match="50"):
            checkpoints.save(50, make_state(50), block=True)
    told = capfd.readouterr().err
    for step in (30, 40, 50):
        assert f"CHECKPOINT {step} WAS NOT SAVED" in told
    assert "No space left on device" in told and "the newest complete one is 20" in told
    assert sorted(path.name for path in saved.iterdir()) == ["10", "20"]
    checkpoints.save(60, make_state(60))
    checkpoints.close()
    assert checkpoints.steps() == [20, 60]


def test_names_must_be_unique(tmp_path):
    with pytest.raises(ValueError, match=r"leaf name = 'a\.b'"):
        Checkpoints(tmp_path, keep_last=1).save(1, {"a": {"b": jnp.zeros(1)}, "a.b": jnp.zeros(1)})


def test_an_unwritable_folder_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorldError, match=r"checkpoints = .*: expected a folder that can be written to"):
        Checkpoints(tmp_path / "file" / "checkpoints", keep_last=1)


def test_one_array_is_read_by_its_name_without_a_model(saved, capfd):
    checkpoints = Checkpoints(saved)
    expected = make_state(20)["model"]["head"]["kernel"]
    found = checkpoints.array("model.head.kernel")
    assert isinstance(found, np.ndarray) and found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(
        checkpoints.array("model.head.kernel", step=10), make_state(10)["model"]["head"]["kernel"]
    )
    with pytest.raises(WorldError, match=r"has no array model\.tail; expected one of model\.blocks\.kernel, "):
        checkpoints.array("model.tail")
    with pytest.raises(WorldError, match="step = 15: expected"):
        checkpoints.array("model.head.kernel", step=15)
    damage_byte(largest_file(saved / "20"))
    np.testing.assert_array_equal(checkpoints.array("model.head.kernel"), make_state(10)["model"]["head"]["kernel"])


def test_a_checkpoint_is_set_aside_and_the_rest_pruned(saved):
    with Checkpoints(saved, keep_last=9, keep_every=5) as checkpoints:
        assert checkpoints.set_aside_unproven(20) == 10
        assert checkpoints.set_aside_unproven(15) == 10
        checkpoints.save(12, make_state(12))
        checkpoints.save(13, make_state(13))
        checkpoints.prune(1)
        assert checkpoints.steps() == [10, 13]
    assert (saved / "20.diverged").is_dir()


def test_checksums_of_many_files_are_those_of_each(tmp_path):
    """More files than are read at a time; the first that is wrong is named first."""
    for i in range(40):
        (tmp_path / f"{i:02d}").write_bytes(bytes([i]) * (i + 1))
    checksums.write(tmp_path)
    entries = files.read_json(tmp_path / checksums.NAME)["files"]
    assert list(entries) == sorted(entries) and len(entries) == 40
    assert entries["07"] == {"bytes": 8, "sha256": hashlib.sha256(bytes([7]) * 8).hexdigest()}
    assert checksums.problems(tmp_path) == []
    for i in (31, 3):
        damage_byte(tmp_path / f"{i:02d}")
    assert checksums.problems(tmp_path) == ["03 does not have its checksum", "31 does not have its checksum"]
