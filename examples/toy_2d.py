"""Every path on a toy in two dimensions: learn a checkerboard of 64 x 64 cells, generate it, draw how it comes about.

    python -m examples.toy_2d [--steps=1500] [--output=runs/toy_2d.png]

A point is a sequence of two tokens, its column and its row. The network sees a noisy point and predicts the
distribution of the clean one. The rows of the picture differ in the path alone. It takes a minute or two on two cores.
"""

# %% The data: the dark squares of a board of 4 x 4
import argparse
import dataclasses
import pathlib
import time

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax

from dfm_jax import flow

CELLS, SQUARE, WIDTH = 64, 16, 192


def draw_data(key: jax.Array, n: int) -> jax.Array:
    """(n, 2) int32 columns and rows."""
    column_key, row_key, which_key = jax.random.split(key, 3)
    column = jax.random.randint(column_key, (n,), 0, CELLS)
    row = jax.random.randint(row_key, (n,), 0, SQUARE)
    pair = 2 * jax.random.randint(which_key, (n,), 0, CELLS // SQUARE // 2) + (column // SQUARE) % 2
    return jnp.stack([column, pair * SQUARE + row], axis=1)


def share_on_board(points: np.ndarray) -> float:
    """The share of points (n, 2) that lie on dark squares; half of all cells are dark."""
    inside = (points < CELLS).all(axis=1)
    return float((inside & ((points // SQUARE).sum(axis=1) % 2 == 0)).mean())


# %% The paths
@dataclasses.dataclass(frozen=True)
class Toy:
    title: str
    path: flow.Path
    source: flow.Source
    step: str = "exact"


def make_toys() -> list[Toy]:
    linear = flow.CondOTScheduler()
    mixture, mask, uniform = flow.MixtureDiscreteProbPath(linear), flow.MaskSource(CELLS), flow.UniformSource(CELLS)
    middle = np.exp(-(((np.arange(CELLS) - CELLS / 2 + 0.5) / 12) ** 2) / 2)
    bell = flow.CategoricalSource(middle / middle.sum())
    places = np.linspace(-1, 1, CELLS)[:, None]  # of the tokens on their axis: near ones are alike
    left_first = np.where(np.arange(CELLS) < CELLS // 2, 4.0, 1.0)
    return [
        Toy("mixture, mask source", mixture, mask),
        Toy("mixture, uniform source", mixture, uniform),
        Toy("three terms, mask source", flow.ThreeTermProbPath(linear, CELLS, 1.0), mask),
        Toy("a schedule per token (GenMD4)", flow.GenMD4ProbPath(linear, CELLS, left_first), mask),
        Toy("kinetic optimal, bell source", flow.KineticOptimalProbPath(linear, bell), bell),
        Toy("metric, by distance", flow.MetricProbPath(linear, places), uniform, "kinetic_optimal"),
    ]


# %% The network: token embeddings and a clock into a perceptron, out come the logits of both clean tokens
def make_network(key: jax.Array, states: int) -> dict[str, jax.Array]:
    keys = jax.random.split(key, 4)
    sizes = {"embed": (2, states, WIDTH), "first": (WIDTH, WIDTH), "second": (WIDTH, WIDTH)}
    weights = {
        name: jax.random.normal(k, size) / (1 if name == "embed" else WIDTH**0.5)
        for (name, size), k in zip(sizes.items(), keys[:3], strict=True)
    }
    return {**weights, "clock": jax.random.normal(keys[3], (16, WIDTH)), "last": jnp.zeros((WIDTH, 2 * states))}


def network(weights: dict[str, jax.Array], x_t: jax.Array, t: jax.Array) -> jax.Array:
    """Posterior logits (B, 2, S) float32 from x_t (B, 2) int32 and t (B,) in [0, 1]."""
    angles = t[:, None] * (jnp.pi * jnp.arange(1, 9, dtype=jnp.float32))[None, :]
    clock = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1) @ weights["clock"]
    hidden = weights["embed"][0][x_t[:, 0]] + weights["embed"][1][x_t[:, 1]] + clock
    for name in ("first", "second"):
        hidden = hidden + jax.nn.gelu(hidden / 2) @ weights[name]
    return (jax.nn.gelu(hidden) @ weights["last"]).reshape(len(t), 2, -1)


# %% Training: x_1 from the data, x_0 from the source, x_t from the path, then the cross entropy of x_1
def train(toy: Toy, steps: int, batch: int = 512) -> dict[str, jax.Array]:
    masked = toy.source.mask_id is not None
    objective = flow.get_objective("cross_entropy", path=toy.path, source=toy.source, suppress_mask=masked)
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))

    def loss(weights: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        data_key, source_key, time_key, path_key = jax.random.split(key, 4)
        x_1 = draw_data(data_key, batch)
        x_0 = toy.source.sample(source_key, x_1.shape)
        t, _ = flow.sample_times(time_key, batch, method="stratified")
        x_t = toy.path.sample(path_key, x_0, x_1, t).x_t
        return flow.loss_from_logits(objective, network(weights, x_t, t.t), x_1, x_t, t).mean()

    def update(carry, key):
        weights, state = carry
        gradient = jax.grad(loss)(weights, key)
        with jax.numpy_dtype_promotion("standard"):
            change, state = optimizer.update(gradient, state)
        return (optax.apply_updates(weights, change), state), None

    init_key, *keys = jax.random.split(jax.random.key(0), steps + 1)
    weights = make_network(init_key, toy.source.num_states)
    return jax.jit(lambda carry, keys: jax.lax.scan(update, carry, keys)[0][0])(
        (weights, optimizer.init(weights)), jnp.stack(keys)
    )


# %% Generation: the path's own sampler, seen at six times
TIMES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)


def generate(toy: Toy, weights: dict[str, jax.Array], n: int) -> np.ndarray:
    """`n` points, seen at TIMES on their way from noise to data: (6, n, 2) int32."""
    solver = flow.Solver(lambda x, t: network(weights, x, t), toy.path, toy.source, step=toy.step)
    x_0 = toy.source.sample(jax.random.key(1), (n, 2))
    return np.asarray(solver.sample(jax.random.key(2), x_0, steps=60, return_intermediates=TIMES))


def draw(axes, points: np.ndarray, masked: bool) -> None:
    """Draws the counts of points (n, 2) in the cells; with `masked`, masked tokens are a strip beyond the board."""
    edges = np.concatenate([np.arange(CELLS + 1), [CELLS + 3]]) if masked else np.arange(CELLS + 1)
    states = len(edges) - 1
    counts, _, _ = np.histogram2d(*points.T, bins=[np.arange(states + 1)] * 2)
    axes.pcolormesh(edges, edges, np.sqrt(counts.T), cmap="magma", vmax=np.sqrt(8), rasterized=True)
    if masked:
        axes.axhline(CELLS, color="0.6", lw=0.5)
        axes.axvline(CELLS, color="0.6", lw=0.5)
    axes.set(xticks=[], yticks=[], aspect="equal")


# %% One row of pictures for each path
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500, help="updates per path")
    parser.add_argument("--samples", type=int, default=6000, help="points drawn per path")
    parser.add_argument("--output", default="runs/toy_2d.png")
    args = parser.parse_args()
    pathlib.Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    toys = make_toys()
    figure, grid = plt.subplots(len(toys), len(TIMES), figsize=(9, 9.6), layout="constrained")
    for toy, row in zip(toys, grid, strict=True):
        start = time.perf_counter()
        states = generate(toy, train(toy, args.steps), args.samples)
        for axes, points, t in zip(row, states, TIMES, strict=True):
            draw(axes, points, toy.source.mask_id is not None)
            if toy is toys[0]:
                axes.set_title(f"t = {t:g}", fontsize=9)
        share = share_on_board(states[-1])
        row[0].set_ylabel(toy.title.replace(", ", ",\n").replace(": ", ":\n").replace(" (", "\n("), fontsize=8)
        row[-1].set_xlabel(f"{share:.1%} on the board", fontsize=8)
        print(f"{toy.title:34} {share:6.1%} on the board   {time.perf_counter() - start:4.1f} s", flush=True)
    figure.savefig(args.output, dpi=110)
    print(args.output)


if __name__ == "__main__":
    main()
