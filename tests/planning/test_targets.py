"""Targets: what a command line means, the shipped chips, and one line for each mistake."""

import re

import pytest

from dfm_jax.planning import targets
from dfm_jax.runtime.errors import UsageError


@pytest.mark.parametrize(
    ("text", "nodes", "per_node", "topology"),
    [
        ("h100:8", 1, 8, "1x1x8"),
        ("h100:2x8", 2, 8, "1x2x8"),
        ("a100:64x8", 64, 8, "1x64x8"),
        ("b200", 1, 1, "1x1x1"),
        ("h200:1x4", 1, 4, "1x1x4"),
    ],
)
def test_parse(text, nodes, per_node, topology):
    target = targets.parse(text)
    assert (target.nodes, target.per_node, target.topology) == (nodes, per_node, topology)
    assert target.num_devices == nodes * per_node


def test_the_shipped_chips_have_every_figure():
    assert targets.known() == ["a100", "b200", "h100", "h200"]
    for name in targets.known():
        chip = targets.load(name)
        assert None not in (chip.peak, chip.nvlink, chip.network, chip.per_node)
        # Links are slower than memory, networks than links; cards of these kinds hold 80 GB or more.
        assert chip.memory_bandwidth > chip.nvlink > chip.network
        assert chip.memory > 79 * 2**30


def test_compute_capabilities():
    found = {name: targets.load(name).compute_capability for name in targets.known()}
    assert found == {"a100": (8, 0), "h100": (9, 0), "h200": (9, 0), "b200": (10, 0)}
    text = targets.load("h100").description.replace("{ major: 9 }", "{ major: 8 minor: 9 }")
    assert targets.read("l40s", text).compute_capability == (8, 9)


def test_a_description_by_path(tmp_path):
    text = targets.load("h100").description.replace("# figure: nvlink_bytes_per_second 450e9\n", "")
    (tmp_path / "card.txtpb").write_text(text)
    target = targets.parse(f"{tmp_path}/card.txtpb:2x4")
    assert target.describe() == "card:2x4"
    assert target.chip.nvlink is None and target.chip.network == 50e9


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "target = (missing): expected CHIP:GPUS"),
        ("h100:0", "target = h100:0: expected CHIP:GPUS"),
        ("h100:2x", "target = h100:2x: expected"),
        ("h100:-8", "target = h100:-8: expected"),
        ("h100:1x2x8", "target = h100:1x2x8: expected"),
        ("v9000:8", "target = v9000:8: expected one of the chips a100, b200, h100, h200, or the path"),
        ("h100:16", "target = h100:16: expected at most 8 GPUs of h100 in a node"),
        (":8", "target = :8: expected one of the chips"),
    ],
)
def test_wrong_targets_are_one_line(text, said):
    with pytest.raises(UsageError) as caught:
        targets.parse(text)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: "hello", "GpuTargetConfigProto"),
        (lambda s: s.rsplit("}", 1)[0], "GpuTargetConfigProto"),
        (lambda s: re.sub(r".*device_memory_size.*\n", "", s), "'device_memory_size: NUMBER'"),
        (lambda s: "# figure: nvlink_bytes_per_second fast\n" + s, "# figure: NAME NUMBER"),
        (lambda s: s.replace("cuda_compute_capability", "capability"), "'cuda_compute_capability { major: 9 }'"),
        (lambda s: "# figure: speed 3\n" + s, "expected bfloat16_flops_per_second"),
    ],
)
def test_malformed_descriptions_are_one_line(tmp_path, change, said):
    (tmp_path / "card.txtpb").write_text(change(targets.load("h100").description))
    with pytest.raises(UsageError) as caught:
        targets.parse(f"{tmp_path}/card.txtpb:8")
    assert said in str(caught.value) and "\n" not in str(caught.value)
