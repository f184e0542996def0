"""The reference's checkpoints in and out: bitwise, and refused with one clear line when something is wrong."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_files as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from dfm_jax.checkpoints import pytorch
from dfm_jax.checkpoints.pytorch import convert
from dfm_jax.checkpoints.pytorch.archive import read_archive, write_archive
from dfm_jax.checkpoints.safetensors_file import read_metadata, read_safetensors, write_safetensors
from dfm_jax.models.transformer import TransformerConfig

HYPERPARAMETERS = {"lr": 3e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.03}


def fixture(source="mask"):
    return reference.FIXTURES / f"checkpoint_{source}.pth"


def content() -> dict:
    """The fixture's content, whose dicts may be changed."""
    return read_archive(fixture())


def read_changed(tmp_path, changed, **options):
    write_archive(tmp_path / "changed.pth", changed)
    return pytorch.read_checkpoint(tmp_path / "changed.pth", options)


def export(path, state):
    pytorch.write_checkpoint(
        path,
        state.model,
        config=state.config,
        step=state.step,
        mu=state.mu,
        nu=state.nu,
        count=state.count,
        hyperparameters=HYPERPARAMETERS,
    )


def assert_same_bits(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


def new_model(config):
    """Random numbers in the model's shapes, its padded rows zero."""
    rng = np.random.default_rng(0)
    model = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), convert.abstract_model(config))
    return convert.from_tensors(convert.to_tensors(model, config), config)


@pytest.mark.parametrize("source", reference.SOURCES)
def test_import_gives_the_references_state(source):
    state = pytorch.read_checkpoint(fixture(source), {"length": 12, "dropout": 0.0})
    assert state.config == reference.config(source, dropout=0.0)
    assert state.step == 7 and state.count == 1  # AdamW's count is the file's own
    model, (x_t, time, _) = jax.tree.map(jnp.asarray, state.model), reference.inputs(source)
    logits = jax.jit(lambda model: model.logits(model(x_t, time)))(model)
    with np.load(reference.FIXTURES / f"adamw_{source}.npz") as expected:
        np.testing.assert_allclose(logits, expected["logits_after"], rtol=0, atol=1e-5)
    gradients = reference.part(source, "grad")
    for name, moment in convert.to_tensors(state.mu, state.config).items():
        np.testing.assert_allclose(moment, 0.1 * gradients[name], rtol=1e-5, atol=1e-9)
    for name, moment in convert.to_tensors(state.nu, state.config).items():
        np.testing.assert_allclose(moment, 0.05 * gradients[name] ** 2, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("source", reference.SOURCES)
def test_import_export_import_is_bitwise(source, tmp_path):
    state = pytorch.read_checkpoint(fixture(source))
    export(tmp_path / "out.pth", state)
    again = pytorch.read_checkpoint(tmp_path / "out.pth")
    assert (again.config, again.step, again.count) == (state.config, 7, 1)
    assert_same_bits([again.model, again.mu, again.nu], [state.model, state.mu, state.nu])
    ours, theirs = read_archive(tmp_path / "out.pth"), read_archive(fixture(source))
    assert list(ours) == list(theirs) and list(ours["model"]) == list(theirs["model"])
    assert_same_bits(ours["model"], theirs["model"])
    assert_same_bits(ours["optimizer"]["state"], theirs["optimizer"]["state"])
    groups = ours["optimizer"]["param_groups"][0], theirs["optimizer"]["param_groups"][0]
    assert groups[0] == {name: groups[1][name] for name in groups[0]}


def test_a_new_model_goes_out_and_comes_back(tmp_path):
    config = TransformerConfig(300, hidden_size=64, cond_dim=8, n_blocks=3, n_heads=4, mlp_ratio=2)
    model = new_model(config)
    state = pytorch.ImportedCheckpoint(config, model, model, model, count=5, step=2**33)
    export(tmp_path / "out.pth", state)
    again = pytorch.read_checkpoint(tmp_path / "out.pth")
    assert (again.config, again.step, again.count) == (config, 2**33, 5)
    assert_same_bits([again.model, again.mu, again.nu], [model, model, model])


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_compile_and_ddp(prefix, tmp_path):
    changed = content()
    changed["model"] = {prefix + name: tensor for name, tensor in changed["model"].items()}
    assert_same_bits(read_changed(tmp_path, changed).model, pytorch.read_checkpoint(fixture()).model)


def test_an_optimizer_without_updates(tmp_path):
    changed = content()
    changed["optimizer"]["state"], changed["step"] = {}, 0
    state = read_changed(tmp_path, changed)
    assert state.count == state.step == 0
    assert not any(leaf.any() for leaf in jax.tree.leaves((state.mu, state.nu)))


def test_the_source_is_inferred_for_gpt2_vocabularies_only():
    assert pytorch.infer_source(50257) == "uniform"
    assert pytorch.infer_source(50258) == "mask"
    with pytest.raises(ValueError, match="38 rows: expected 50257"):
        pytorch.infer_source(38)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"n_heads": 4}, "n_heads = 4 in the config: expected 2, as the file says"),
        ({"hidden_size": 768}, "hidden_size = 768 in the config: expected 32, as the file"),
        ({"vocab_size": 37}, "vocab_size = 37 in the config: expected 38, as the file"),
        ({"qk_norm": True}, "qk_norm = True in the config: expected False, as the file says"),
    ],
)
def test_a_config_that_says_otherwise(option, message):
    with pytest.raises(ValueError, match=message):
        pytorch.read_checkpoint(fixture(), option)


def _drop(*keys):
    def change(state):
        for key in keys[:-1]:
            state = state[key]
        del state[keys[-1]]

    return change


def _put(*keys, value):
    def change(state):
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = value

    return change


ZEROS = np.zeros((32, 32), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop("model"), "key model is missing: expected optimizer, model"),
        (_drop("step"), "key step is missing"),
        (_put("scaler", value={}), "key scaler is unknown"),
        (_put("step", value="7"), "step = 7: expected a number"),
        (_put("model", value=[]), "model is a list: expected a dict"),
        (_drop("model", "blocks.1.qw.weight"), "blocks.1.qw.weight is missing"),
        (_drop("model", "vocab_embed.weight"), "vocab_embed.weight is missing"),
        (_drop("model", "blocks.0.norm1.weight"), "blocks.0.norm1.weight is missing"),
        (_drop("model", "rotary_emb.inv_freq"), "rotary_emb.inv_freq is missing"),
        (_put("model", "blocks.1.extra.weight", value=ZEROS), "blocks.1.extra.weight is unknown"),
        (_put("model", "blocks.3.qw.weight", value=ZEROS), "blocks.3.qw.weight is unknown"),
        (_put("model", "blocks.999999.qw.weight", value=ZEROS), "blocks.999999.qw.weight is unknown"),
        (
            _put("model", "blocks.0.qw.weight", value=ZEROS[1:]),
            r"blocks.0.qw.weight = float32\[31, 32\]: expected float32\[32, 32\]",
        ),
        (_put("model", "blocks.0.qw.weight", value=ZEROS.astype(np.float64)), r"blocks.0.qw.weight = float64"),
        (_put("model", "vocab_embed.weight", value=ZEROS[0]), r"vocab_embed.weight = \[32\]: expected 2 axes"),
        (_put("model", "module.vocab_embed.weight", value=ZEROS), "vocab_embed.weight appears twice"),
        (_put("model", "blocks.0.qw.weight", value=3.0), "blocks.0.qw.weight is a float"),
        (_put("model", "rotary_emb.inv_freq", value=np.ones(8, np.float32)), "rotary_emb.inv_freq = .*expected 10000"),
        (_put("model", "rotary_emb.inv_freq", value=np.ones(7, np.float32)), "rotary_emb.inv_freq.*expected"),
        (_drop("optimizer", "state", 3), "optimizer.state: expected a state for each of the 34"),
        (_put("optimizer", "param_groups", value=[]), "param_groups: expected one group"),
        (_put("optimizer", "param_groups", 0, "params", value=[0]), "expected the 34 parameters in the model's order"),
        (_drop("optimizer", "state", 0, "exp_avg"), "of vocab_embed.weight: .*expected step, exp_avg"),
        (_put("optimizer", "state", 0, "step", value=2.0), r"steps \[1.0, 2.0\]: expected one number"),
        (_put("optimizer", "state", 0, "exp_avg", value=ZEROS), "vocab_embed.weight = .*expected"),
        (_put("optimizer", "state", 0, "exp_avg", value=0.0), "of vocab_embed.weight: exp_avg: expected a tensor"),
    ],
)
def test_a_damaged_state_is_refused_by_name(change, message, tmp_path):
    changed = content()
    change(changed)
    with pytest.raises(ValueError, match=message) as error:
        read_changed(tmp_path, changed)
    assert str(error.value).startswith(str(tmp_path / "changed.pth: ")) and "\n" not in str(error.value)


@given(size=st.integers(0, fixture().stat().st_size - 1))
@settings(max_examples=15)
def test_a_cut_file_is_refused(size, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "cut.pth"
    path.write_bytes(fixture().read_bytes()[:size])
    with pytest.raises(ValueError, match=r"cut.pth: not a whole file of torch.save's zip format"):
        pytorch.read_checkpoint(path)


@given(place=st.integers(0, fixture().stat().st_size - 1), bit=st.integers(0, 7))
@settings(max_examples=40)
def test_a_flipped_bit_is_refused_or_harmless(place, bit, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "flipped.pth"
    data = bytearray(fixture().read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)
    try:
        read = read_archive(path)
    except ValueError as error:
        assert str(error).startswith(str(path))
        return
    assert_same_bits(read["model"], content()["model"])
    assert_same_bits(read["optimizer"]["state"], content()["optimizer"]["state"])


@pytest.mark.parametrize(
    "option", [{"qk_norm": True}, {"tie_embeddings": True}, {"time_scale": 1000.0}, {"time_conditioning": False}]
)
def test_a_model_that_the_reference_lacks_goes_out_as_safetensors_only(option, tmp_path):
    config = TransformerConfig(37, hidden_size=32, cond_dim=8, n_blocks=2, n_heads=2, length=16, **option)
    model = new_model(config)
    with pytest.raises(ValueError, match=f"model.{next(iter(option))} = .*expected .*--format=safetensors"):
        export(tmp_path / "out.pth", pytorch.ImportedCheckpoint(config, model, model, model, 0, 0))
    assert not list(tmp_path.iterdir())
    pytorch.write_weights(tmp_path / "out.safetensors", model, config=config, step=3)
    again = pytorch.read_weights(tmp_path / "out.safetensors")
    assert (again.config, again.step, again.count) == (config, 3, 0)
    assert_same_bits(again.model, model)
    assert not any(leaf.any() for leaf in jax.tree.leaves((again.mu, again.nu)))


def test_safetensors_have_the_references_names_and_say_what_they_are(tmp_path):
    state = pytorch.read_checkpoint(fixture())
    path = tmp_path / "model.safetensors"
    pytorch.write_weights(path, state.model, config=state.config, step=state.step)
    tensors, expected = read_safetensors(path), content()["model"]
    assert_same_bits(tensors, dict(expected))
    metadata = read_metadata(path)
    assert metadata["step"] == "7" and TransformerConfig(**json.loads(metadata["config"])) == state.config
    with pytest.raises(ValueError, match=r"model.safetensors: n_heads = 4 in the config: expected 2, as the file says"):
        pytorch.read_weights(path, {"n_heads": 4})
    assert pytorch.read_weights(path, {"length": 12, "dropout": 0.0}).config == reference.config("mask", dropout=0.0)


def test_any_safetensors_file_of_the_references_tensors_is_read(tmp_path):
    path, tensors = tmp_path / "a.safetensors", dict(content()["model"])
    write_safetensors(path, {"_orig_mod." + name: tensor for name, tensor in tensors.items()})
    read = pytorch.read_weights(path)
    assert read.step == 0
    assert_same_bits(read.model, pytorch.read_checkpoint(fixture()).model)
    del tensors["output_layer.linear.weight"]
    write_safetensors(path, tensors)
    with pytest.raises(ValueError, match=r"a.safetensors: output_layer.linear.weight is missing"):
        pytorch.read_weights(path)
    write_safetensors(path, tensors, {"config": "[]"})
    with pytest.raises(ValueError, match=r"a.safetensors: metadata config = \[\]: expected an object"):
        pytorch.read_weights(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        pytorch.read_weights(path)
