"""Sudoku of 6 x 6 cells: a network learns which digits fit, and the order in which it fills cells decides how well.

    python -m examples.sudoku [--steps=300] [--puzzles=200] [--output=runs/sudoku.png]

A grid is a sequence of 36 tokens, a puzzle is a grid most of whose tokens are masks. The network is trained on grids
with any cells masked. It is then given puzzles of which no clue can be left out, from grids that it never saw, not with
other names of the digits either. `unmask` fills `count` cells after each evaluation of the network, in random order or
by margin: first the cells whose two likeliest digits differ most. It takes about three minutes on two cores.
"""

# %% The grids: every one whose first row is 1 to 6; the others are these with the digits renamed
import argparse
import pathlib
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax

from dfm_jax import flow

SIDE, CELLS = 6, 36
ROW, COLUMN = np.divmod(np.arange(CELLS), SIDE)
BOX = ROW // 2 * 2 + COLUMN // 3  # of two rows and three columns
UNITS = np.stack([u == n for u in (ROW, COLUMN, BOX) for n in range(SIDE)])  # (18, 36) bool: the cells of each
MEMBER = [np.flatnonzero(UNITS[:, cell]).tolist() for cell in range(CELLS)]
WIDTH, ROUNDS = 96, 8


def all_grids() -> np.ndarray:
    """(39168, 36) int8 digits from 0 to 5, in order."""

    def filled(grid: list[int], used: list[set[int]]) -> Iterator[list[int]]:
        cell = len(grid)
        if cell == CELLS:
            yield list(grid)
            return
        for digit in [cell] if cell < SIDE else range(SIDE):
            units = [used[unit] for unit in MEMBER[cell]]
            if any(digit in unit for unit in units):
                continue
            for unit in units:
                unit.add(digit)
            yield from filled([*grid, digit], used)
            for unit in units:
                unit.remove(digit)

    return np.array(list(filled([], [set() for _ in UNITS])), np.int8)


def solutions(grids: np.ndarray, grid: np.ndarray, clues: np.ndarray) -> int:
    """How many of `grids`, the digits renamed, agree with `grid` (36,) at the cells `clues`."""
    names = grid[clues]
    first = [clues[names == digit][0] for digit in np.unique(names)]
    if len(first) < SIDE - 1:
        return 2  # two digits that no clue names can change places
    for digit, cell in zip(np.unique(names), first, strict=True):
        same = clues[names == digit]
        grids = grids[(grids[:, same] == grids[:, cell : cell + 1]).all(1)]
    return int((np.diff(np.sort(grids[:, first], 1), axis=1) > 0).all(1).sum())


def make_puzzles(rng: np.random.Generator, grids: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """(n, 36) bool, for each grid of `held_out` the clues: no fewer of them have this one solution."""
    given = np.ones(held_out.shape, bool)
    for grid, shown in zip(held_out, given, strict=True):
        for cell in rng.permutation(CELLS):
            shown[cell] = False
            shown[cell] = solutions(grids, grid, np.flatnonzero(shown)) != 1
    return given


# %% The network: in every round a cell hears the sums of its row, its column and its box
def make_network(key: jax.Array) -> dict[str, jax.Array]:
    keys = jax.random.split(key, 4)
    return {
        "embed": jax.random.normal(keys[0], (SIDE + 1, WIDTH)),
        "hear": jax.random.normal(keys[1], (4 * WIDTH, 2 * WIDTH)) / (4 * WIDTH) ** 0.5,
        "say": jax.random.normal(keys[2], (2 * WIDTH, WIDTH)) / (2 * WIDTH) ** 0.5,
        "last": jnp.zeros((WIDTH, SIDE + 1)),
    }


def network(weights: dict[str, jax.Array], x_t: jax.Array, t: jax.Array) -> jax.Array:
    """Posterior logits (B, 36, 7) float32 from x_t (B, 36) int32. With masks the posterior does not depend on t."""
    hidden = weights["embed"][x_t]
    for _ in range(ROUNDS):  # of one and the same step
        normal = hidden * jax.lax.rsqrt((hidden**2).mean(-1, keepdims=True) + 1e-6)
        board = normal.reshape(-1, SIDE, SIDE, WIDTH)
        row = jnp.broadcast_to(board.sum(2, keepdims=True), board.shape)
        column = jnp.broadcast_to(board.sum(1, keepdims=True), board.shape)
        box = board.reshape(-1, 3, 2, 2, 3, WIDTH).sum((2, 4), keepdims=True)
        box = jnp.broadcast_to(box, (len(t), 3, 2, 2, 3, WIDTH)).reshape(board.shape)
        heard = jnp.concatenate([normal, *(unit.reshape(normal.shape) / 2 for unit in (row, column, box))], -1)
        hidden = hidden + jax.nn.gelu(heard @ weights["hear"]) @ weights["say"]
    return hidden @ weights["last"]


PATH, SOURCE = flow.MixtureDiscreteProbPath(flow.CondOTScheduler()), flow.MaskSource(SIDE)


# %% Training: x_1 a grid with its digits renamed, x_t from the path, then the cross entropy of x_1
def train(grids: np.ndarray, steps: int, batch: int) -> dict[str, jax.Array]:
    objective = flow.get_objective("cross_entropy", path=PATH, source=SOURCE, suppress_mask=True)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(2e-3, steps)))

    def loss(weights: dict[str, jax.Array], x_1: jax.Array, key: jax.Array) -> jax.Array:
        time_key, path_key, name_key = jax.random.split(key, 3)
        names = jax.vmap(jax.random.permutation, (0, None))(jax.random.split(name_key, batch), jnp.arange(SIDE))
        x_1 = jnp.take_along_axis(names, x_1, axis=1)
        t, _ = flow.sample_times(time_key, batch, method="stratified")
        x_0 = SOURCE.sample(path_key, x_1.shape)
        x_t = PATH.sample(path_key, x_0, x_1, t).x_t
        return flow.loss_from_logits(objective, network(weights, x_t, t.t), x_1, x_t, t).mean()

    @jax.jit
    def update(weights, state, key, data):
        grid_key, key = jax.random.split(key)
        x_1 = data[jax.random.randint(grid_key, (batch,), 0, len(data))]
        value, gradient = jax.value_and_grad(loss)(weights, x_1, key)
        with jax.numpy_dtype_promotion("standard"):
            change, state = optimizer.update(gradient, state)
        return optax.apply_updates(weights, change), state, value

    weights, data = make_network(jax.random.key(0)), jnp.asarray(grids, jnp.int32)
    state = optimizer.init(weights)
    for step, key in enumerate(jax.random.split(jax.random.key(1), steps)):
        weights, state, value = update(weights, state, key, data)
        if (step + 1) % 50 == 0:
            print(f"step {step + 1} of {steps}: cross entropy {float(value):.3f} nats a cell", flush=True)
    return weights


# %% Solving: the clues are fixed, `unmask` fills the rest
def solve(
    weights: dict[str, jax.Array], order: str, count: int, grids: np.ndarray, clues: np.ndarray, frames: list[float]
) -> np.ndarray:
    """The puzzles as they are filled, (frames, n, 36) int32; frames: shares of the empty cells."""
    step = f"unmask:order={order},count={count}"
    solver = flow.Solver(lambda x, t: network(weights, x, t), PATH, SOURCE, step=step)
    x_init = jnp.asarray(np.where(clues, grids, SOURCE.mask_id), jnp.int32)
    return np.asarray(solver.sample(jax.random.key(2), x_init, fixed=jnp.asarray(clues), return_intermediates=frames))


def rules_kept(filled: np.ndarray) -> float:
    """The share of rows, columns and boxes of (n, 36) that have each digit once."""
    return float(np.mean([[len(set(grid[unit].tolist())) == SIDE for unit in UNITS] for grid in filled]))


# %% The picture: one puzzle as it is filled, and how many are solved
FRAMES = [0.0, 1 / 3, 2 / 3, 1.0]
ORDERS, COUNTS = ("random", "margin"), (1, 2, 4)


def draw_board(axes, state: np.ndarray, grid: np.ndarray, clue: np.ndarray) -> None:
    """A board (36,): clues black, what the network filled blue, what is wrong red."""
    for cell in np.flatnonzero(state < SIDE):
        colour = "black" if clue[cell] else "tab:blue" if state[cell] == grid[cell] else "tab:red"
        place = COLUMN[cell] + 0.5, ROW[cell] + 0.55
        axes.text(*place, str(state[cell] + 1), color=colour, ha="center", va="center", fontsize=10)
    for line in range(SIDE + 1):
        axes.axhline(line, color="0.3", lw=1.6 if line % 2 == 0 else 0.4)
        axes.axvline(line, color="0.3", lw=1.6 if line % 3 == 0 else 0.4)
    axes.set(xlim=(0, SIDE), ylim=(SIDE, 0), xticks=[], yticks=[], aspect="equal")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="updates of the network")
    parser.add_argument("--batch", type=int, default=128, help="grids per update")
    parser.add_argument("--puzzles", type=int, default=200, help="puzzles to solve, at most 1000")
    parser.add_argument("--output", default="runs/sudoku.png")
    args = parser.parse_args()
    pathlib.Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    start, rng = time.perf_counter(), np.random.default_rng(0)
    grids = all_grids()
    shuffled = grids[rng.permutation(len(grids))]
    held_out, seen = shuffled[: args.puzzles], shuffled[1000:]
    clues = make_puzzles(rng, grids, held_out)
    print(f"{len(grids)} grids, {len(seen)} to learn from; {len(clues)} puzzles of {clues.sum(1).mean():.1f} clues")
    weights = train(seen, args.steps, args.batch)
    print(f"trained after {time.perf_counter() - start:.0f} s")

    solved, boards = {}, {}
    print("order   count   evaluations   puzzles right   rules kept")
    for order in ORDERS:
        for count in COUNTS:
            states = solve(weights, order, count, held_out, clues, FRAMES)
            right = (states[-1] == held_out).all(1)
            solved[order, count], boards[order, count] = right.mean(), states
            evaluations = float(np.ceil((~clues).sum(1) / count).mean())
            print(
                f"{order:7} {count:5} {evaluations:13.1f} {right.mean():14.1%} {rules_kept(states[-1]):12.1%}",
                flush=True,
            )
    # A puzzle that the margin order solves and the random order does not, if there is one.
    right = {order: (boards[order, 1][-1] == held_out).all(1) for order in ORDERS}
    shown = int(np.argmax(right["margin"] & ~right["random"]))
    figure, grid = plt.subplots(len(ORDERS), len(FRAMES) + 1, figsize=(12, 5), layout="constrained")
    for order, row in zip(ORDERS, grid, strict=True):
        for axes, state in zip(row, boards[order, 1][:, shown], strict=False):
            draw_board(axes, state, held_out[shown], clues[shown])
        row[0].set_ylabel(f"{order} order", fontsize=10)
        row[-1].bar([str(count) for count in COUNTS], [solved[order, count] for count in COUNTS], color="tab:blue")
        row[-1].set(ylim=(0, 1), xlabel="cells per evaluation", title="puzzles right")
    figure.savefig(args.output, dpi=110)
    print(f"{args.output}, after {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
