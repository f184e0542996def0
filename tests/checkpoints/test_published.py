"""Published folders: what their tensors and config.json say, and what is refused, each by name."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from dfm_jax.checkpoints import published
from dfm_jax.checkpoints.published import layouts, names, reading, writing
from dfm_jax.checkpoints.pytorch import convert
from dfm_jax.checkpoints.pytorch.archive import write_archive
from dfm_jax.checkpoints.safetensors_file import read_safetensors, write_safetensors
from dfm_jax.models.transformer import TransformerConfig

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures" / "public_weights"
ALL = ("mdlm", "sedd", "udlm", "duo")


@pytest.fixture
def folder(tmp_path):
    """A copy of a fixture, and a way to change its config.json and its tensors."""

    class Copy:
        path = tmp_path / "copy"

        def of(self, name: str) -> pathlib.Path:
            shutil.copytree(FIXTURES / name, self.path)
            (self.path / "expected.npz").unlink()
            return self.path

        def config(self, **changes) -> None:
            file = self.path / "config.json"
            content = json.loads(file.read_text()) | changes
            file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))

        def tensors(self, change) -> None:
            file = self.path / "model.safetensors"
            tensors = read_safetensors(file)
            change(tensors)
            write_safetensors(file, tensors)

    return Copy()


def refused(path: pathlib.Path, **options) -> str:
    with pytest.raises(ValueError) as caught:
        published.read(path, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("name", ALL)
def test_the_tensors_come_and_go_unchanged(name):
    found = published.read(FIXTURES / name)
    theirs = read_safetensors(FIXTURES / name / "model.safetensors")
    entry = published.LAYOUTS[name]
    assert entry is not None
    config = found.imported.config
    again = names.from_reference(convert.to_tensors(found.imported.model, config), config, entry.prefix)
    assert set(again) == set(theirs)
    for tensor, value in theirs.items():
        np.testing.assert_array_equal(again[tensor], value, err_msg=tensor)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("which", range(31))
def test_a_tensor_that_is_missing_extra_or_of_another_shape_is_named(name, which):
    tensors = read_safetensors(FIXTURES / name / "model.safetensors")
    config = json.loads((FIXTURES / name / "config.json").read_text())
    tensor = sorted(tensors)[which]
    wrong = {
        "missing": {key: value for key, value in tensors.items() if key != tensor},
        "unknown": tensors | {f"{tensor}_too": tensors[tensor]},
        "shape": tensors | {tensor: tensors[tensor][..., :-1]},
        "dtype": tensors | {tensor: tensors[tensor].astype(np.float64)},
    }
    for kind, changed in wrong.items():
        with pytest.raises(ValueError, match=r"^the folder: [^\n]*$") as caught:
            reading.of_tensors(config, changed, {})
        assert tensor.removeprefix("backbone.") in str(caught.value) or kind == "shape"


@pytest.mark.parametrize("name", ALL)
def test_shards_and_a_pickle_hold_the_same(name, folder, tmp_path):
    path = folder.of(name)
    expected = published.read(path)
    tensors = read_safetensors(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    write_archive(path / "pytorch_model.bin", dict(tensors))
    jax.tree.map(np.testing.assert_array_equal, published.read(path).imported.model, expected.imported.model)
    (path / "pytorch_model.bin").unlink()
    half = len(tensors) // 2
    parts = {
        f"model-0000{i + 1}-of-00002.safetensors": dict(items)
        for i, items in enumerate((list(tensors.items())[:half], list(tensors.items())[half:]))
    }
    for file, part in parts.items():
        write_safetensors(path / file, part)
    places = {tensor: file for file, part in parts.items() for tensor in part}
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    jax.tree.map(np.testing.assert_array_equal, published.read(path).imported.model, expected.imported.model)
    index.write_text(json.dumps({"weight_map": places | {"another": next(iter(parts))}}))
    assert "another" in refused(path)
    index.write_text(json.dumps({"weight_map": places | {"another": "../model.safetensors"}}))
    assert "expected files of this folder" in refused(path)
    index.write_text(json.dumps({"weight_map": places}))
    (path / next(iter(parts))).unlink()
    assert "no such file" in refused(path)


def test_a_pickle_with_prefixes_of_a_compiled_module_is_read(folder):
    path = folder.of("mdlm")
    expected = published.read(path)
    tensors = read_safetensors(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    write_archive(path / "pytorch_model.bin", {f"_orig_mod.{name}": value for name, value in tensors.items()})
    jax.tree.map(np.testing.assert_array_equal, published.read(path).imported.model, expected.imported.model)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_training_checkpoint_gives_the_averages(key, folder):
    path = folder.of("mdlm")
    tensors = read_safetensors(path / "model.safetensors")
    order = [f"backbone.{name}" for name in names.shapes(published.read(path).imported.config)]
    weights = {name: tensors[name] for name in order}
    averages = [value + 1 for name, value in weights.items() if not name.endswith("inv_freq")]
    write_archive(path / "last.ckpt", {key: weights, "ema": {"decay": 0.5, "shadow_params": averages}, "step": 7})
    found = published.read(path, weights=path / "last.ckpt").imported.model.final_norm.scale[...]
    np.testing.assert_array_equal(found, tensors["backbone.output_layer.norm_final.weight"] + 1)
    write_archive(path / "last.ckpt", {key: weights, "ema": {"decay": 0.5, "shadow_params": averages[1:]}})
    assert "ema.shadow_params: expected the averages of the 30 parameters" in refused(path, weights=path / "last.ckpt")


REFUSED = {
    "a uniform graph": ("sedd", {"graph": {"type": "uniform"}}, "graph.type = uniform: expected absorb"),
    "classes": ("udlm", {"cfg": True}, "cfg = true: class-conditional"),
    "an autoregressive Duo": ("duo", {"causal": True}, "causal = true"),
    "block diffusion": ("mdlm", {"model_type": "bd3lm", "architectures": ["BD3LM"]}, "bd3lm"),
    "block diffusion under another name": ("mdlm", {"block_size": 4}, "block_size = 4"),
    "no name": ("duo", {"model_type": ..., "architectures": ...}, "(missing): expected reference, sedd, mdlm"),
    "an unknown name": ("duo", {"model_type": "bert", "architectures": ...}, "bert: expected reference, sedd, mdlm"),
    "two names": ("duo", {"model_type": "mdlm"}, "says duo and mdlm"),
    "no length": ("duo", {"model_length": ...}, "model_length = (missing)"),
    "a length that is none": ("duo", {"model_length": "48"}, "model_length = 48: expected an integer"),
    "another width": ("duo", {"hidden_dim": 128}, "vocab_embed.embedding"),
    "more blocks": ("duo", {"n_blocks": 3}, "blocks.2.norm1.weight is missing (10 tensors are)"),
    "fewer blocks": ("duo", {"n_blocks": 1}, "blocks.1.adaLN_modulation.bias is unknown (10 tensors are)"),
    "other heads": ("duo", {"n_heads": 8}, "rotary_emb.inv_freq"),
    "other states": ("sedd", {"tokens": 98}, "vocab_embed.embedding"),
    "another noise": ("sedd", {"noise": {"type": "cosine"}}, "noise.type = cosine"),
    "a switch that is none": ("mdlm", {"time_conditioning": "no"}, "time_conditioning = no"),
}


@pytest.mark.parametrize("name, changes, part", REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_one_line(name, changes, part, folder):
    path = folder.of(name)
    folder.config(**changes)
    assert part in refused(path)


def test_class_conditional_tensors_are_refused_by_name(folder):
    path = folder.of("udlm")
    folder.tensors(lambda tensors: tensors.update({"backbone.cond_map.embedding_table.weight": np.zeros((3, 32))}))
    assert "backbone.cond_map.embedding_table.weight: class-conditional" in refused(path)


def test_frequencies_of_another_base_are_refused(folder):
    path = folder.of("duo")
    folder.tensors(lambda tensors: tensors["backbone.rotary_emb.inv_freq"].__imul__(2))
    assert "inv_freq: expected 10000^(-2i/head_dim)" in refused(path)


def test_an_empty_folder_is_named(tmp_path):
    assert "config.json: no such file" in refused(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "no weights in it; expected model.safetensors" in refused(tmp_path)


def test_the_name_of_a_layout_is_enough_where_nothing_tells(folder):
    path = folder.of("duo")
    folder.config(model_type=..., architectures=...)
    found = published.read(path, layout="duo")
    assert (found.layout, found.imported.network["flow.source_distribution"]) == ("duo", "uniform")
    assert published.read(path, layout="mdlm").imported.network["flow.source_distribution"] == "mask"
    assert "layout = d3pm: expected one of reference, sedd, mdlm, udlm, duo" in refused(path, layout="d3pm")


def test_the_time_is_what_config_json_says_or_the_layouts_own(folder):
    path = folder.of("mdlm")
    folder.config(time_conditioning=True)
    told = published.read(path).imported
    assert told.config.time_conditioning and told.network["model.time_input"] == "sigma"
    folder.config(time_conditioning=...)
    assert not published.read(path).imported.config.time_conditioning
    shutil.rmtree(path)
    folder.of("duo")
    folder.config(time_conditioning=...)
    assert published.read(path).imported.config.time_conditioning
    folder.config(time_conditioning=False)
    assert not published.read(path).imported.config.time_conditioning


def test_the_geometric_noise_of_sedd_ends_at_its_own_sigma(folder):
    path = folder.of("sedd")
    assert published.read(path).imported.network["model.largest_sigma"] == pytest.approx(np.log(1000))
    folder.config(noise={"type": "geometric", "sigma_min": 1e-4, "sigma_max": 20})
    assert published.read(path).imported.network["model.largest_sigma"] == 20


def test_a_mask_inside_the_vocabulary_moves_to_its_end_and_back():
    inside = published.read(FIXTURES / "mdlm", mask_id=5)
    last = published.read(FIXTURES / "mdlm", mask_id=97)
    rows, moved = (np.asarray(found.imported.model.embedding.table[...]) for found in (last, inside))
    order = [*range(5), *range(6, 98), 5]
    np.testing.assert_array_equal(moved[:98], rows[:98][order])
    np.testing.assert_array_equal(inside.imported.model.head_bias()[:98], last.imported.model.head_bias()[:98][order])
    config = inside.imported.config
    tensors = convert.to_tensors(inside.imported.model, config)
    back = names.mask_back(tensors, 5)
    for name, value in convert.to_tensors(last.imported.model, config).items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)
    assert "mask_id = 98: expected an id from 0 to 97" in refused(FIXTURES / "mdlm", mask_id=98)
    assert "mask_id = 5: expected 97" in refused(FIXTURES / "sedd", mask_id=5)
    assert "mask_id = 5: expected none" in refused(FIXTURES / "duo", mask_id=5)


def drawn(config: TransformerConfig, seed: int):
    rng = np.random.default_rng(seed)
    model = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), convert.abstract_model(config))
    return convert.from_tensors(convert.to_tensors(model, config), config)


@pytest.mark.parametrize("mask_id", [3, 20])
def test_another_size_is_written_as_mdlm_and_read_again(mask_id, tmp_path):
    config = TransformerConfig(21, 48, 24, 12, 3, 2, time_conditioning=False)
    model = drawn(config, 0)
    writing.write(tmp_path / "out", model, config, mask_id=mask_id)
    found = published.read(tmp_path / "out", mask_id=mask_id)
    assert found.layout == "mdlm" and found.imported.config == config
    jax.tree.map(np.testing.assert_array_equal, found.imported.model, model)


def test_half_precision_becomes_float32_without_a_change(folder):
    path = folder.of("udlm")
    half = {name: value.astype("bfloat16") for name, value in read_safetensors(path / "model.safetensors").items()}
    write_safetensors(path / "model.safetensors", half)
    found = published.read(path).imported.model.blocks.mlp_up.kernel[...][1]
    np.testing.assert_array_equal(found, half["backbone.blocks.1.mlp.0.weight"].astype(np.float32).T)


def test_every_layout_has_a_meaning():
    assert set(layouts.LAYOUTS) == {"reference", *ALL}
