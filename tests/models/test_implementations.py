"""A config's attention and head, checked against the devices before they are used."""

import types

import numpy as np
import pytest

from dfm_jax.kernels.attention import cudnn
from dfm_jax.models import implementations
from dfm_jax.models.transformer import TransformerConfig
from dfm_jax.runtime.errors import UsageError

KINDS = {"A100": "8.0", "H100": "9.0", "B200": "10.0"}


def mesh(kind, tensor=1):
    """What `check` reads of a mesh of such devices."""
    if kind == "cpu":
        device = types.SimpleNamespace(platform="cpu", device_kind="cpu")
    else:
        device = types.SimpleNamespace(platform="gpu", device_kind=kind, compute_capability=KINDS[kind])
    devices = np.empty((1, 1, tensor), object)
    devices[:] = device
    return types.SimpleNamespace(devices=devices, shape={"data": 1, "fsdp": 1, "tensor": tensor})


def model(attention="auto", n_heads=12, dtype="bfloat16"):
    return TransformerConfig(vocab_size=100, attention=attention, n_heads=n_heads, compute_dtype=dtype)


@pytest.mark.parametrize(
    ("kind", "tensor", "model", "head", "line"),
    [
        (
            "A100",
            1,
            model("pallas"),
            "auto",
            "config.model.attention = pallas: expected a GPU of compute capability 9.0",
        ),
        ("B200", 1, model("pallas"), "auto", "not B200 of compute capability 10.0"),
        ("A100", 1, model(), "pallas", "config.model.head = pallas: expected a GPU of compute capability 9.0"),
        ("H100", 2, model(), "dense", "config.model.head = dense: expected blocks or pallas where a mesh axis splits"),
        ("H100", 1, model("pallas", n_heads=4), "auto", "expected head_dim 32 to 128, not 192"),
        ("A100", 1, model("cudnn", n_heads=4), "auto", "expected head_dim a multiple of 8 up to 128, not 192"),
        (
            "cpu",
            1,
            model("cudnn"),
            "auto",
            "config.model.attention = cudnn: expected an NVIDIA GPU of compute capability",
        ),
        ("H100", 1, model("pallas", dtype="float32"), "auto", "expected bfloat16 or float16 on a GPU, not float32"),
    ],
)
def test_what_cannot_run_is_one_line(monkeypatch, kind, tensor, model, head, line):
    monkeypatch.setattr(cudnn, "_refusal", lambda head_dim: None)
    with pytest.raises(UsageError) as error:
        implementations.check(model, head, mesh(kind, tensor))
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_what_can_run_passes_and_auto_says_what_it_misses(monkeypatch):
    monkeypatch.setattr(cudnn, "_refusal", lambda head_dim: None)
    for kind in ("cpu", *KINDS):
        assert implementations.check(model(), "auto", mesh(kind)) == []
    assert implementations.check(model("pallas"), "pallas", mesh("H100", 2)) == []
    assert implementations.check(model(), "dense", mesh("H100")) == []
    # Draws have no kernel of their own, and their head is not split.
    assert implementations.check(model(), "pallas", mesh("A100"), losses=False) == []
    assert implementations.check(model(), "dense", mesh("H100", 2), losses=False) == []
    monkeypatch.setattr(cudnn, "_refusal", lambda head_dim: "cuDNN not found.")
    (line,) = implementations.check(model(), "auto", mesh("A100"))
    assert line.startswith("attention: xla, as cudnn is not possible: expected an installed cuDNN")
    assert implementations.check(model(), "auto", mesh("cpu")) == []
