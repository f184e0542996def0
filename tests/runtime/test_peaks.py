"""Peak rates: the device names that jax gives, and those that only look alike."""

import pytest

from dfm_jax.models import flops
from dfm_jax.planning import targets
from dfm_jax.runtime import peaks

TERA = 1e12


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA GH200 144G HBM3e", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("A100-SXM4-40GB", 312),  # as older drivers say it
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 5090", 209.5),
    ],
)
def test_published_rates(name, rate):
    assert peaks.peak_of(name) == pytest.approx(rate * TERA, rel=1e-3)


@pytest.mark.parametrize(
    "name",
    [
        "cpu",
        "TPU v5 lite",
        "NVIDIA H20",
        "NVIDIA H800",
        "NVIDIA H100",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA A100-SXM4-40GB MIG 3g.20gb",
        "NVIDIA A100-SXM-64GB",
        "NVIDIA A100X",
        "NVIDIA GB200",
        "NVIDIA L40G",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4080",
        "NVIDIA RTX 5000 Ada Generation",
        "Tesla V100-SXM2-16GB",  # has no bfloat16
        "",
    ],
)
def test_what_is_not_known_has_none(name):
    assert peaks.peak_of(name) is None


def test_every_rate_names_its_source():
    assert all("sheet" in peak.source or "white paper" in peak.source for peak in peaks.PEAKS)


def test_plans_use_the_same_rates():
    for name in targets.known():
        chip = targets.load(name)
        kind = chip.description.partition('device_description_str: "')[2].partition('"')[0]
        assert peaks.peak_of(kind) == pytest.approx(chip.peak, rel=1e-3), name


def test_a_mesh_of_known_devices_multiplies_and_another_has_none():
    import types

    import numpy as np

    def mesh(kind):
        devices = np.array([types.SimpleNamespace(device_kind=kind)] * 8)
        return types.SimpleNamespace(devices=devices, size=8)

    assert flops.peak_per_second(mesh("NVIDIA L40S")) == pytest.approx(8 * 362.05 * TERA)
    assert flops.peak_per_second(mesh("cpu")) is None
