"""How fast a GPU multiplies at most: dense bfloat16 products with float32 sums, as its maker publishes them."""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Peak:
    """`names` is a regular expression for the whole device name, without 'NVIDIA '; `rate` in operations a second."""

    names: str
    rate: float
    source: str


# A data sheet's figure is often the one with 2:4 sparsity, twice the dense one. A part of a card (MIG) and laptop or
# regional variants have other rates under longer names: they are not in the table, and so have no utilisation.
PEAKS = (
    Peak(r"H100 80GB HBM3", 989.4e12, "H100 architecture white paper: SXM5, 989.4 dense"),
    Peak(r"H100 PCIe", 756e12, "H100 architecture white paper: PCIe, 756 dense"),
    Peak(r"H100 NVL", 835.5e12, "H100 data sheet: NVL, 1,671 with sparsity"),
    Peak(r"H200", 989.4e12, "H200 data sheet: SXM, 1,979 with sparsity; the tensor cores of H100 SXM"),
    Peak(r"H200 NVL", 835.5e12, "H200 data sheet: NVL, 1,671 with sparsity"),
    Peak(r"GH200 (120GB|480GB|144G HBM3e)", 989.4e12, "GH200 data sheet: 1,979 with sparsity; cores of H100 SXM"),
    Peak(r"B200", 2250e12, "HGX B200 data sheet: 36 PFLOPS with sparsity for eight"),
    Peak(r"A100-(SXM4?|PCIE)-(40|80)GB|A100 80GB PCIe", 312e12, "A100 data sheet: 312 dense, all four forms"),
    Peak(r"L4", 121e12, "L4 data sheet: 242 with sparsity"),
    Peak(r"L40", 181.05e12, "L40 data sheet: 181.05 dense"),
    Peak(r"L40S", 362.05e12, "L40S data sheet: 362.05 dense"),
    Peak(r"GeForce RTX 4090", 165.2e12, "Ada architecture white paper: 165.2 dense with FP32 accumulation"),
    Peak(r"GeForce RTX 5090", 209.5e12, "RTX Blackwell architecture white paper: 209.5 dense with FP32 accumulation"),
)


def peak_of(device_kind: str) -> float | None:
    """Dense bfloat16 operations a second of a device as jax names it, or None where that is not known."""
    name = device_kind.removeprefix("NVIDIA ")
    return next((peak.rate for peak in PEAKS if re.fullmatch(peak.names, name)), None)
