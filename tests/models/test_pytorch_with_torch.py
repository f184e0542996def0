"""Files go to PyTorch and come from it: needs torch (`pytest -m torch`)."""

from collections import OrderedDict

import jax
import numpy as np
import pytest
from test_pytorch_checkpoint import assert_same_bits, export, fixture

from dfm_jax.checkpoints import pytorch
from dfm_jax.checkpoints.pytorch import convert
from dfm_jax.checkpoints.pytorch.archive import read_archive
from dfm_jax.checkpoints.safetensors_file import read_safetensors

pytestmark = [pytest.mark.torch, pytest.mark.slow]
torch = pytest.importorskip("torch", reason="torch is not installed (pip install .[torch])")
nn = torch.nn


class Scale(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))


def module_of(**children) -> nn.Module:
    module = nn.Module()
    for name, child in children.items():
        module.add_module(name, child)
    return module


def documented_module(states: int, size: int, cond: int, blocks: int, head_dim: int) -> nn.Module:
    """Modules of the names and shapes of the reference's checkpoint, in its order; they compute nothing."""
    rotary = nn.Module()
    rotary.register_buffer("inv_freq", 1.0 / 10000 ** (torch.arange(0, head_dim, 2).float() / head_dim))

    def block():
        return module_of(
            norm1=Scale(size),
            qw=nn.Linear(size, size, bias=False),
            kw=nn.Linear(size, size, bias=False),
            vw=nn.Linear(size, size, bias=False),
            attn_out=nn.Linear(size, size, bias=False),
            norm2=Scale(size),
            mlp=nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size)),
            adaLN_modulation=nn.Linear(cond, 6 * size),
        )

    return module_of(
        vocab_embed=nn.Embedding(states, size),
        time_embedding=module_of(mlp=nn.Sequential(nn.Linear(256, cond), nn.SiLU(), nn.Linear(cond, cond))),
        rotary_emb=rotary,
        blocks=nn.ModuleList([block() for _ in range(blocks)]),
        output_layer=module_of(
            norm_final=Scale(size), linear=nn.Linear(size, states), adaLN_modulation=nn.Linear(cond, 2 * size)
        ),
    )


@pytest.mark.parametrize(("source", "states"), [("uniform", 37), ("mask", 38)])
@pytest.mark.parametrize("mmap", [False, True])
def test_torch_loads_what_we_export(source, states, mmap, tmp_path):
    state = pytorch.read_checkpoint(fixture(source))
    export(tmp_path / "out.pth", state)
    ours = torch.load(tmp_path / "out.pth", weights_only=True, mmap=mmap)
    theirs = torch.load(fixture(source), weights_only=True)
    assert ours["step"] == 7 and list(ours["model"]) == list(theirs["model"])
    for name, tensor in theirs["model"].items():
        assert torch.equal(ours["model"][name], tensor) and ours["model"][name].is_contiguous()
    module = documented_module(states, 32, 16, 2, 16)
    module.load_state_dict(ours["model"], strict=True)
    optimizer = torch.optim.AdamW(module.parameters(), betas=(0.9, 0.95), weight_decay=0.03)
    optimizer.load_state_dict(ours["optimizer"])
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    first = optimizer.state[module.vocab_embed.weight]
    assert float(first["step"]) == 2
    moment = convert.to_tensors(state.mu, state.config)["vocab_embed.weight"]
    np.testing.assert_allclose(first["exp_avg"].numpy(), 0.9 * moment + 0.1, rtol=1e-6)


def test_we_read_what_torch_saves(tmp_path):
    """A state of a module under DDP's and compile's prefixes, with an optimiser that has taken steps."""
    torch.manual_seed(0)
    module = documented_module(50, 64, 16, 3, 16)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    for _ in range(3):
        sum((parameter**2).sum() for parameter in module.parameters()).backward()
        optimizer.step()
    saved = {
        "optimizer": optimizer.state_dict(),
        "model": OrderedDict(("module._orig_mod." + k, v) for k, v in module.state_dict().items()),
        "step": 3,
        "train_sampler": {},
        "test_sampler": {},
    }
    torch.save(saved, tmp_path / "in.pth")
    state = pytorch.read_checkpoint(tmp_path / "in.pth", {"length": 16})
    assert (state.step, state.count, state.config.n_heads, state.config.n_blocks) == (3, 3, 4, 3)
    for name, tensor in convert.to_tensors(state.model, state.config).items():
        np.testing.assert_array_equal(tensor, module.state_dict()[name].numpy())
    table = convert.to_tensors(state.nu, state.config)["vocab_embed.weight"]
    np.testing.assert_array_equal(table, optimizer.state[module.vocab_embed.weight]["exp_avg_sq"].numpy())


def test_views_parameters_and_dtypes(tmp_path):
    base = torch.arange(24).reshape(4, 6)
    saved = {
        "view": base[1:3, ::2],
        "transposed": base.T,
        "again": base,
        "parameter": nn.Parameter(torch.ones(2)),
        "bfloat16": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "scalar": torch.tensor(True),
    }
    torch.save(saved, tmp_path / "in.pth")
    read = read_archive(tmp_path / "in.pth")
    for name, tensor in saved.items():
        expected = tensor.detach().float().numpy()
        np.testing.assert_array_equal(read[name].astype(np.float32), expected, err_msg=name)
    assert read["bfloat16"].dtype.name == "bfloat16" and read["again"].base is not None


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (torch.device("cpu"), "torch.device"),
        (torch.float32, "torch.float32"),
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        (torch.zeros(2).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
    ],
)
def test_other_objects_of_torch_are_refused_by_name(value, name, tmp_path):
    torch.save({"model": value}, tmp_path / "in.pth")
    with pytest.raises(ValueError, match=f"{name} in the pickle: expected"):
        read_archive(tmp_path / "in.pth")


def test_the_old_format_is_refused(tmp_path):
    torch.save({"x": torch.ones(2)}, tmp_path / "in.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="zip format"):
        read_archive(tmp_path / "in.pth")


def test_safetensors_load_into_the_module(tmp_path):
    state = pytorch.read_checkpoint(fixture("mask"))
    pytorch.write_weights(tmp_path / "out.safetensors", state.model, config=state.config, step=7)
    load_file = pytest.importorskip("safetensors.torch").load_file
    tensors = load_file(tmp_path / "out.safetensors")
    documented_module(38, 32, 16, 2, 16).load_state_dict(tensors, strict=True)
    assert_same_bits(
        jax.tree.map(lambda t: t.numpy(), dict(tensors)), dict(read_safetensors(tmp_path / "out.safetensors"))
    )
