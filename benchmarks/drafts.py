"""Coupled drafts on a Markov chain whose exact posterior is known: evaluations one after the other, and inputs in all.

    PYTHONPATH=. python benchmarks/drafts.py [--texts 30] [--drafts 4 8 16] [--method exact] [--corrector ""]
    PYTHONPATH=. python benchmarks/drafts.py --run RUN [--steps 64] [--drafts 2 4 8 16]

With --run the texts of a trained run, one and eight at a time, by several samplers; on all devices that there are.
The chain has 16 states. A row for each source, length and number of steps: the evaluations of one move at a time (moves
that need no answer need no evaluation), then for each draft "sequential / inputs", means over the texts, whose tokens
are compared with those of one move at a time. Counts say nothing of seconds: on a processor drafts save none.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np

import dfm_jax
from benchmarks.runs_compared import generator
from dfm_jax import flow
from dfm_jax.run.load import Run

STATES = 16
SIZES = [("mask", 32, 32), ("mask", 32, 128), ("mask", 64, 64)]
SIZES += [("uniform", length, steps) for _, length, steps in SIZES]
# Of a trained run: method and corrector.
ALL = [("exact", ""), ("euler", ""), ("exact", "gibbs:sites=1"), ("exact", "resample:rate=0.1")]
SAMPLERS = {
    "mask": [*ALL, ("unmask:order=random,count=1", ""), ("unmask:order=entropy,bound=1", "")],
    "uniform": [*ALL, ("ancestral", ""), ("psi", "")],
}


def chain() -> np.ndarray:
    """Transition probabilities (16, 16)."""
    weights = np.exp(2.0 * np.random.default_rng(0).normal(size=(STATES, STATES)))
    return weights / weights.sum(1, keepdims=True)


def posterior(transition: np.ndarray, source: flow.Source, x: jax.Array, t: jax.Array) -> jax.Array:
    """Logits (B, L, S) of p(x_1^i | x_t) for a chain that starts anywhere, by sums forward and backward."""
    one_hot = jax.nn.one_hot(x, source.num_states)[..., :STATES]
    noise = source.probs(x)[..., None]
    seen = t[:, None, None] * one_hot + (1.0 - t[:, None, None]) * noise  # p(x_t^i | x_1^i)
    step = jnp.asarray(transition, jnp.float32)

    def forward(before: jax.Array, here: jax.Array) -> tuple[jax.Array, jax.Array]:
        after = (before * here) @ step
        return after / after.sum(-1, keepdims=True), before

    def backward(after: jax.Array, here: jax.Array) -> tuple[jax.Array, jax.Array]:
        before = (after * here) @ step.T
        return before / before.sum(-1, keepdims=True), after

    along = jnp.swapaxes(seen, 0, 1)
    start = jnp.full(along.shape[1:], 1.0 / STATES)
    _, past = jax.lax.scan(forward, start, along)
    _, future = jax.lax.scan(backward, jnp.ones_like(start), along, reverse=True)
    log = jnp.log(jnp.swapaxes(past * future * along, 0, 1))
    return jnp.pad(log, ((0, 0), (0, 0), (0, source.num_states - STATES)), constant_values=-jnp.inf)


def of_run(run: Run, steps: int, drafts: list[int]) -> None:
    """A row for each sampler of the run's source and each number of texts. Raises AssertionError for other tokens."""
    print(f"| sampler, texts | one at a time | {' | '.join(map(str, drafts))} |\n|" + "---|" * (2 + len(drafts)))
    mesh = run.mesh if run.mesh.size > 1 else None
    for method, corrector in SAMPLERS[run.config.flow.source_distribution]:
        for texts in (1, 8):
            row, alone = [f"{method}{' and ' * bool(corrector)}{corrector}, {texts}"], None
            for draft in (1, *drafts):
                generate = generator(run, 8, mesh, steps=steps, method=method, corrector=corrector, draft=draft)
                drawn = next(generate(run.model, texts))
                if alone is None:
                    alone = drawn.tokens
                assert (drawn.tokens == alone).all(), f"{row[0]}, draft = {draft}: other tokens"
                spent = drawn.evaluations
                one = f"{np.mean(spent.sequential):.1f}"
                row.append(one if draft == 1 else f"{one} / {np.mean(spent.trunk):.0f}")
            print(f"| {' | '.join(row)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", help="a trained run in place of the chain")
    parser.add_argument("--steps", type=int, default=64, help="with --run")
    parser.add_argument("--texts", type=int, default=30, help="of the chain")
    parser.add_argument("--drafts", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--method", default="exact", help="of the chain")
    parser.add_argument("--corrector", default="", help="of the chain")
    args = parser.parse_args()
    if args.run:
        of_run(dfm_jax.load(args.run), args.steps, args.drafts)
        return
    path, transition = flow.MixtureDiscreteProbPath(flow.CondOTScheduler()), chain()
    print(
        f"| source, length, steps | one at a time | {' | '.join(map(str, args.drafts))} |\n|"
        + "---|" * (2 + len(args.drafts))
    )
    for name, length, steps in SIZES:
        source = flow.get_source(name, STATES)
        model = functools.partial(posterior, transition, source)
        solver = flow.Solver(model, path, source, step=args.method, corrector=args.corrector or None)
        x = source.sample(jax.random.key(0), (args.texts, length))
        draw = functools.partial(solver.sample, jax.random.key(1), x, steps=steps, return_evaluations=True)
        tokens, spent = draw()
        row = [f"{name}, {length}, {steps}", f"{np.mean(spent.sequential):.1f}"]
        for draft in args.drafts:
            same, spent = draw(draft=draft)
            assert (np.asarray(same) == np.asarray(tokens)).all(), f"draft = {draft}: other tokens"
            row.append(f"{np.mean(spent.sequential):.1f} / {np.mean(spent.trunk):.0f}")
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
