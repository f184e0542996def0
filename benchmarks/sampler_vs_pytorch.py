"""Our sampler against the reference's own solver (`flow_matching`: dense posterior, float64 draws), in one process.

    python benchmarks/sampler_vs_pytorch.py [--hidden 256] [--blocks 4] [--heads 4] [--batch 4] [--length 256]
                                            [--vocabulary 50257] [--steps 8 64] [--reference_steps 8]

One row per number of steps and source: seconds per sample set of ours, of the reference, of the trunk alone (the
floor), and the ratios. The reference's time per step does not depend on the number of steps, so it is run for
`--reference_steps` and scaled. Wall times, interleaved; processor times beside them. Needs `pip install .[torch]`.
"""

# The check of types runs without PyTorch.
# pyright: reportMissingImports=false

import argparse
import time
from collections.abc import Callable

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
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


class Posterior(ModelWrapper):
    """The reference's solver wants probabilities."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, **extras) -> torch.Tensor:
        return torch.softmax(self.model(x, t.expand(x.shape[0])).float(), -1)


def reference(args: argparse.Namespace, states: int) -> Callable[[], None]:
    torch.manual_seed(0)
    model = Model(states, args.hidden, args.blocks, args.heads, args.length, 0.0).eval()
    path = MixtureDiscreteProbPath(PolynomialConvexScheduler(1.0))
    solver = MixtureDiscreteEulerSolver(Posterior(model), path, states)
    x_init = torch.randint(args.vocabulary, (args.batch, args.length))
    if states > args.vocabulary:
        x_init = torch.full_like(x_init, args.vocabulary)

    def sample() -> None:
        with torch.no_grad():
            solver.sample(x_init, 1.0 / args.reference_steps, dtype_categorical=torch.float64)

    return sample


def ours(args: argparse.Namespace, source: str, steps: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """Our sampler, and its trunk alone for as many steps."""
    config = base.get_config()
    config.flow.source_distribution = source
    config.model.update(hidden_size=args.hidden, n_blocks=args.blocks, n_heads=args.heads, length=args.length)
    frozen = freeze(config)
    problem = get_problem(frozen, args.vocabulary)
    model_config = get_model_config(frozen, problem.source.num_states)
    model = jax.jit(lambda: Transformer(model_config, rngs=nnx.Rngs(0)))()
    settings = SamplingSettings(length=args.length, steps=steps)
    generator = Generator(problem, settings, args.batch)

    @jax.jit
    def trunk(model: Transformer, x: jax.Array) -> jax.Array:
        def step(total, t):
            # Each pass waits for the one before, as the sampler's do.
            x_t = x + (total > 1e30).astype(jnp.int32)
            return total + model(x_t, jnp.full((args.batch,), t)).mean(), None

        return jax.lax.scan(step, jnp.zeros(()), jnp.linspace(0.0, 1.0, steps, endpoint=False))[0]

    x = jax.random.randint(jax.random.key(0), (args.batch, args.length), 0, args.vocabulary, jnp.int32)
    return (lambda: list(generator(model, args.batch))), (lambda: float(trunk(model, x)))


def best(run: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Least wall and processor seconds of some repeats, after one that compiles."""
    run()
    pairs = []
    for _ in range(repeats):
        wall, processor = time.perf_counter(), time.process_time()
        run()
        pairs.append((time.perf_counter() - wall, time.process_time() - processor))
    walls, processors = np.array(pairs).T
    return float(walls.min()), float(processors.min())


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, value in (("hidden", 256), ("blocks", 4), ("heads", 4), ("batch", 4), ("length", 256)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--reference_steps", type=int, default=8)
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print("| source | steps | ours, s | reference, s | reference / ours | trunk, s | ours / trunk |\n|" + "---|" * 7)
    for source in ("uniform", "mask"):
        dense = reference(args, args.vocabulary + (source == "mask"))
        wall_dense, processor_dense = best(dense, 1)
        for steps in args.steps:
            sample, trunk = ours(args, source, steps)
            wall, processor = best(sample, args.repeats)
            floor, floor_processor = best(trunk, args.repeats)
            scale = steps / args.reference_steps
            print(
                f"| {source} | {steps} | {wall:.2f} ({processor:.2f} processor) "
                f"| {wall_dense * scale:.1f} ({processor_dense * scale:.1f} processor) "
                f"| {wall_dense * scale / wall:.0f} ({processor_dense * scale / processor:.0f} processor) "
                f"| {floor:.2f} ({floor_processor:.2f} processor) "
                f"| {wall / floor:.2f} ({processor / floor_processor:.2f} processor) |"
            )


if __name__ == "__main__":
    main()
