"""The table of other programs' formats: told by content, each written and read again."""

import jax
import numpy as np
import optax
import pytest

from dfm_jax.checkpoints.layouts import LAYOUTS, Export, layout_of
from dfm_jax.checkpoints.pytorch import convert
from dfm_jax.models.transformer import TransformerConfig

CONFIG = TransformerConfig(37, hidden_size=32, cond_dim=8, n_blocks=2, n_heads=2, length=16)


def model(seed: int):
    rng = np.random.default_rng(seed)
    drawn = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), convert.abstract_model(CONFIG))
    return convert.from_tensors(convert.to_tensors(drawn, CONFIG), CONFIG)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_back_what_it_wrote_under_any_name(name, tmp_path):
    layout = LAYOUTS[name]
    moments = optax.ScaleByAdamState(count=np.int32(5), mu=model(1), nu=model(2))  # pyright: ignore
    rates = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.0}
    meaning = {"flow.exponent": 2.0}
    path = tmp_path / "a file without a telling name"
    layout.write(path, Export(model(0), CONFIG, 7, meaning, moments, rates))
    assert layout_of(path) is layout
    read = layout.read(path, {"length": 16})
    assert read.step == 7 and read.config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, read.model, model(0))
    if layout.training:
        assert read.count == 5
        jax.tree.map(np.testing.assert_array_equal, (read.mu, read.nu), (model(1), model(2)))
    else:
        assert read.network == meaning
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_what_no_layout_knows_is_left_to_the_reader_its_name_asks_for(tmp_path):
    for name, layout in LAYOUTS.items():
        file = tmp_path / f"{name}.{layout.suffix}"
        file.write_bytes(b"neither of them")
        assert layout_of(file) is layout
        with pytest.raises(ValueError, match="not a whole"):
            layout.read(file, {})
