"""Our training step against the same step in PyTorch, in one process, interleaved.

    python benchmarks/step_vs_pytorch.py [--hidden 256] [--blocks 4] [--heads 4] [--batch 8] [--length 256]
                                         [--vocabulary 50257] [--dropout 0.1] [--repeats 5] [--loss library]
                                         [--device cpu] [--compile] [--autocast] [--calls 0] [--json FILE]

One step is: noise, forward, generalized KL, backward, clipping, AdamW in float32. PyTorch takes its loss from the
library that the reference uses (`flow_matching`); with `--loss lean`, from a form that exponentiates only what it
gathers. PyTorch is eager; with `--compile` there is a third program, whose model is compiled, as the reference's is.
With `--autocast` PyTorch's model runs under bfloat16 autocast, and ours computes in bfloat16. With `--device cuda` all
run on the first GPU, PyTorch with the fused AdamW; the comparison at the published size is
`--device cuda --compile --autocast --hidden 768 --blocks 12 --heads 12 --batch 32 --length 1024`.

Prints wall and processor time of each and their ratios, tokens per second and, on a chip whose bfloat16 peak is known,
model FLOP utilisation. On a machine that other work shares, the ratio of processor times is the steadier one. On a GPU
a repeat queues `--calls` steps and waits once, so that its wall time is the device's; processor time says nothing there
and is left out. A program that fails is named, and the others go on. Needs `pip install .[torch]`, and a C++ compiler
for `--compile` on a processor. `--json FILE` also writes the repeats.
"""

# The check of types runs without PyTorch.
# pyright: reportMissingImports=false

import argparse
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # PyTorch's idle threads must not spin through our turn
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # nor must JAX take the memory of a GPU that both use

import jax
import jax.numpy as jnp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs import base
from dfm_jax.config import freeze
from dfm_jax.data import Batch
from dfm_jax.models import flops
from dfm_jax.runtime.mesh import MeshShape, make_mesh
from dfm_jax.training.loop import make_trainer


class TimeEmbedding(nn.Module):
    """256 sinusoids of t, an MLP, SiLU."""

    def __init__(self, cond_dim: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim))

    def forward(self, t: Tensor) -> Tensor:
        frequencies = torch.exp(-math.log(10000.0) * torch.arange(128, dtype=torch.float32, device=t.device) / 128)
        angles = t[:, None] * frequencies
        return F.silu(self.mlp(torch.cat((angles.cos(), angles.sin()), -1)))


class Norm(nn.Module):
    """LayerNorm without bias, then shift and scale."""

    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        x = F.layer_norm(x.float(), x.shape[-1:], self.weight, None, 1e-5)
        return x * (1 + scale[:, None]) + shift[:, None]


def rotary_tables(length: int, size: int) -> tuple[Tensor, Tensor]:
    angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, size, 2) / size)
    angles = torch.cat((angles, angles), -1)[:, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    first, second = x.float().chunk(2, -1)
    return x * tables[0] + torch.cat((-second, first), -1) * tables[1]


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Block(nn.Module):
    def __init__(self, size: int, heads: int, cond_dim: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_1, self.norm_2 = Norm(size), Norm(size)
        self.q, self.k, self.v, self.out = (nn.Linear(size, size, bias=False) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(approximate="tanh"), nn.Linear(4 * size, size))
        self.modulation = zero_linear(cond_dim, 6 * size)

    def forward(self, x: Tensor, c: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(c).chunk(6, -1)
        h = self.norm_1(x, shift_1, scale_1)
        q, k, v = (w(h).unflatten(-1, (self.heads, -1)) for w in (self.q, self.k, self.v))
        q, k = rotate(q, tables).to(v.dtype), rotate(k, tables).to(v.dtype)
        h = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        h = self.out(h.transpose(1, 2).flatten(2))
        x = x + gate_1[:, None] * F.dropout(h, self.dropout, self.training)
        h = self.mlp(self.norm_2(x, shift_2, scale_2))
        return x + gate_2[:, None] * F.dropout(h, self.dropout, self.training)


class Model(nn.Module):
    def __init__(self, vocabulary: int, size: int, blocks: int, heads: int, length: int, dropout: float):
        super().__init__()
        cond_dim = 128
        self.embedding = nn.Embedding(vocabulary, size)
        self.time = TimeEmbedding(cond_dim)
        self.blocks = nn.ModuleList(Block(size, heads, cond_dim, dropout) for _ in range(blocks))
        self.norm, self.modulation = Norm(size), zero_linear(cond_dim, 2 * size)
        self.head = zero_linear(size, vocabulary)
        cos, sin = rotary_tables(length, size // heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        x, c = self.embedding(x_t), self.time(t)
        for block in self.blocks:
            x = block(x, c, (self.cos, self.sin))
        return self.head(self.norm(x, *self.modulation(c).chunk(2, -1)))


def library_loss() -> Callable[..., Tensor]:
    from flow_matching.loss import MixturePathGeneralizedKL
    from flow_matching.path import MixtureDiscreteProbPath
    from flow_matching.path.scheduler import PolynomialConvexScheduler

    return MixturePathGeneralizedKL(MixtureDiscreteProbPath(PolynomialConvexScheduler(1.0)))


def lean_loss(logits: Tensor, x_1: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    log_probs = F.log_softmax(logits, -1)
    log_p_1 = log_probs.gather(-1, x_1[..., None])[..., 0]
    p_t = log_probs.gather(-1, x_t[..., None])[..., 0].exp()
    same = (x_t == x_1).float()
    return (-(p_t - same + (1 - same) * log_p_1) / (1 - t)[:, None]).mean()


def pytorch_step(args: argparse.Namespace, *, compiled: bool) -> tuple[Callable[[], Tensor], int]:
    torch.manual_seed(0)
    model = Model(args.vocabulary, args.hidden, args.blocks, args.heads, args.length, args.dropout).to(args.device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=3e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.03, fused=args.device == "cuda"
    )
    logits_of = torch.compile(model) if compiled else model
    x_1 = torch.randint(args.vocabulary, (args.batch, args.length), device=args.device)
    loss_of = library_loss() if args.loss == "library" else lean_loss

    def step() -> Tensor:
        t = torch.rand(args.batch, device=args.device) * (1 - 1e-3)
        x_0 = torch.randint_like(x_1, args.vocabulary)
        x_t = torch.where(torch.rand(x_1.shape, device=args.device) < t[:, None], x_1, x_0)
        with torch.autocast(args.device, torch.bfloat16) if args.autocast else contextlib.nullcontext():
            logits = logits_of(x_t, t)
        loss = loss_of(logits.float(), x_1, x_t, t)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    return step, sum(p.numel() for p in model.parameters())


@dataclasses.dataclass(frozen=True)
class Ours:
    step: Callable[[], jax.Array]  # the loss, not waited for
    parameters: int
    memory: float  # MiB of temporaries
    operations: float  # of one step of the model, in either program
    peak: float | None  # bfloat16 operations a second


def our_step(args: argparse.Namespace) -> Ours:
    config = base.get_config()
    model = config.model
    model.hidden_size, model.n_blocks, model.n_heads, model.length = args.hidden, args.blocks, args.heads, args.length
    model.dropout, model.compute_dtype = args.dropout, "bfloat16" if args.autocast else "float32"
    config.training.batch_size = args.batch
    if args.device == "cpu":
        # A processor gains nothing from blocks written out nor from scores kept, which take 250 MiB.
        config.training.unroll, model.remat = 1, "dots"
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    trainer = make_trainer(freeze(config), args.vocabulary, mesh)
    state = trainer.create()
    batch = Batch(jax.random.randint(jax.random.key(1), (args.batch, args.length), 0, args.vocabulary, jnp.int32))
    compiled = trainer.step.lower(state, batch).compile()
    held = [state]

    def step() -> jax.Array:
        held[0], metrics = compiled(held[0], batch)
        return metrics["loss"]

    return Ours(
        step,
        sum(x.size for x in jax.tree.leaves(state.model)),
        compiled.memory_analysis().temp_size_in_bytes / 2**20,
        flops.training_step(trainer.config, trainer.problem.source.num_states),
        flops.peak_per_second(mesh),
    )


def repeat(step: Callable[[], Any], calls: int) -> tuple[float, float, float]:
    """(wall, processor) seconds of one of `calls` steps, and the last loss. The loss is read, so all is waited for."""
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(calls):
        loss = step()
    value = float(loss)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()  # the update that follows the loss
    return (time.perf_counter() - wall) / calls, (time.process_time() - processor) / calls, value


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    sizes = {"hidden": 256, "blocks": 4, "heads": 4, "batch": 8, "length": 256, "vocabulary": 50257, "repeats": 5}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--loss", choices=("library", "lean"), default="library")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--autocast", action="store_true")
    parser.add_argument("--calls", type=int, default=0, help="steps of a repeat; 0: 1 on a processor, 5 on a GPU")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device = cuda: expected cpu, as PyTorch finds no GPU")
    args.calls = args.calls or (5 if args.device == "cuda" else 1)
    return args


def main() -> None:
    args = parse()
    jax.config.update("jax_platforms", args.device)
    ours = our_step(args)
    steps: dict[str, Callable[[], Any]] = {"ours": ours.step}
    theirs, count = pytorch_step(args, compiled=False)
    steps["pytorch"] = theirs
    if args.compile:
        steps["pytorch compiled"] = pytorch_step(args, compiled=True)[0]
    print(f"jax {jax.__version__}, torch {torch.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{jax.devices()[0].device_kind}, {args}")
    print(f"{ours.parameters} parameters here (padded), {count} in PyTorch; ", end="")
    print(f"our temporary memory {ours.memory:.0f} MiB")
    failed: dict[str, str] = {}
    for name in list(steps):
        try:
            print(f"{name}: loss of the first step {repeat(steps[name], 1)[2]:.3f}", flush=True)
        except Exception as error:  # out of memory, or no compiler: any of many types
            if name == "ours":
                raise
            failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            print(f"{name}: not measured, {failed[name]}", flush=True)
            del steps[name]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(args.repeats):
        for name, step in steps.items():
            times[name].append(repeat(step, args.calls)[:2])
    report(args, ours, times)
    if args.json:
        seconds = {name: [wall for wall, _ in rows] for name, rows in times.items()}
        args.json.write_text(json.dumps({"calls": args.calls, "seconds": seconds, "failed": failed}))


def report(args: argparse.Namespace, ours: Ours, times: dict[str, list[tuple[float, float]]]) -> None:
    """Prints best and median times, each beside ours, and rates."""
    for label, of in (("best", min), ("median", statistics.median)):
        found = {name: [of(column) for column in zip(*rows, strict=True)] for name, rows in times.items()}
        for index, kind in enumerate(("wall", "processor") if args.device == "cpu" else ("wall",)):
            line = f"{label:6s} {kind:9s} ours {found['ours'][index]:6.4g} s"
            for name, values in found.items():
                if name != "ours":
                    line += f"  {name} {values[index]:6.4g} s  ratio {found['ours'][index] / values[index]:.2f}"
            print(line)
    for name, rows in times.items():
        wall = statistics.median(wall for wall, _ in rows)
        used = f"MFU {ours.operations / wall / ours.peak:.1%}" if ours.peak else "MFU of a chip without a known peak"
        print(f"{name:16s} {args.batch * args.length / wall:9.0f} tokens/s by the median wall time, {used}")


if __name__ == "__main__":
    main()
