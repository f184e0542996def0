"""The samplers that `sampler_vs_pytorch.py` times, which sets the threads before it imports this module.

Each program draws one batch from its beginning to its end and waits for it. The trunk alone, for as many steps, is the
floor of ours.
"""

# The check of types runs without PyTorch.
# pyright: reportMissingImports=false

import argparse
from collections.abc import Callable
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import torch
from flow_matching.path import MixtureDiscreteProbPath
from flow_matching.path.scheduler import PolynomialConvexScheduler
from flow_matching.solver import MixtureDiscreteEulerSolver
from flow_matching.utils import ModelWrapper

from benchmarks.step_vs_pytorch import Model
from configs import base
from dfm_jax.config import freeze
from dfm_jax.evaluation.generation import Generator, SamplingSettings
from dfm_jax.experiment.problem import get_model_config, get_problem
from dfm_jax.models.transformer import Transformer

Program = Callable[[], Any]


class Posterior(ModelWrapper):
    """The reference's solver wants probabilities."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, **extras) -> torch.Tensor:
        return torch.softmax(self.model(x, t.expand(x.shape[0])).float(), -1)


def reference(args: argparse.Namespace, source: str, steps: int, *, compiled: bool) -> Program:
    """The solver of `flow_matching`, Euler steps with float64 draws, on the same network in PyTorch."""
    states = args.vocabulary + (source == "mask")
    torch.manual_seed(0)
    model = Model(states, args.hidden, args.blocks, args.heads, args.length, 0.0).eval().to(args.device)
    path = MixtureDiscreteProbPath(PolynomialConvexScheduler(1.0))
    network: Any = torch.compile(model) if compiled else model
    solver = MixtureDiscreteEulerSolver(Posterior(network), path, states)
    x_init = torch.randint(args.vocabulary, (args.batch, args.length), device=args.device)
    if source == "mask":
        x_init = torch.full_like(x_init, args.vocabulary)

    def sample() -> None:
        with torch.no_grad(), torch.autocast(args.device, torch.bfloat16, enabled=args.device == "cuda"):
            solver.sample(x_init, 1.0 / steps, dtype_categorical=torch.float64)
        if args.device == "cuda":
            torch.cuda.synchronize()

    return sample


def ours(args: argparse.Namespace, source: str, steps: int) -> tuple[Program, Program]:
    """Our sampler, and its trunk alone for as many steps."""
    config = base.get_config()
    config.flow.source_distribution = source
    config.model.update(hidden_size=args.hidden, n_blocks=args.blocks, n_heads=args.heads, length=args.length)
    frozen = freeze(config)
    problem = get_problem(frozen, args.vocabulary)
    model_config = get_model_config(frozen, problem.source.num_states)
    model = jax.jit(lambda: Transformer(model_config, rngs=nnx.Rngs(0)))()
    generator = Generator(problem, SamplingSettings(length=args.length, steps=steps), args.batch)

    @jax.jit
    def trunk(model: Transformer, x: jax.Array) -> jax.Array:
        def step(total, t):
            # Each pass waits for the one before, as the sampler's do.
            x_t = x + (total > 1e30).astype(jnp.int32)
            return total + model(x_t, jnp.full((args.batch,), t)).astype(jnp.float32).mean(), None

        return jax.lax.scan(step, jnp.zeros(()), jnp.linspace(0.0, 1.0, steps, endpoint=False))[0]

    x = jax.random.randint(jax.random.key(0), (args.batch, args.length), 0, args.vocabulary, jnp.int32)
    return (lambda: list(generator(model, args.batch))), (lambda: float(trunk(model, x)))


def programs(args: argparse.Namespace, source: str, steps: int) -> dict[str, Program]:
    """By name, in the order of a repeat."""
    sample, trunk = ours(args, source, steps)
    found = {"ours": sample, "reference": reference(args, source, steps, compiled=False), "trunk alone": trunk}
    if args.compile:
        found["reference compiled"] = reference(args, source, steps, compiled=True)
    return found


def versions() -> str:
    return f"jax {jax.__version__}, torch {torch.__version__}, {jax.devices()[0].device_kind}"
