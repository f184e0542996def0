"""Sudoku of 6 x 6 cells: a network learns which digits fit, and the order in which cells are filled decides how well.

    python -m examples.sudoku [--steps=1500] [--puzzles=400] [--output=runs/sudoku.png]

A grid is a sequence of 36 tokens, a puzzle is a grid most of whose tokens are masks. The network is trained on grids
with any cells masked. It is then asked for puzzles whose grids it never saw, not under other names of the digits
either. `unmask` fills `count` cells after each evaluation of the network: in random order, or first those whose two
likeliest digits differ most (margin). It takes about three minutes on two cores.
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
UNITS = np.stack([u == n for u in (ROW, COLUMN, BOX) for n in range(SIDE)])  # (18, 36): the cells of each
WIDTH, ROUNDS = 96, 8


def all_grids() -> np.ndarray:
    """(39168, 36) int8 digits from 0 to 5, in order."""

    def filled(grid: list[int], used: list[set[int]]) -> Iterator[list[int]]:
        cell = len(grid)
        if cell == CELLS:
            yield list(grid)
            return
        units = [used[np_unit] for np_unit in MEMBER[cell]]
        for digit in range(SIDE):
            if cell < SIDE and digit != cell or any(digit in unit for unit in units):
                continue
            for unit in units:
                unit.add(digit)
            grid.append(digit)
            yield from filled(grid, used)
            grid.pop()
            for unit in units:
                unit.remove(digit)

    return np.array(list(filled([], [set() for _ in UNITS])), np.int8)


MEMBER = [np.flatnonzero(UNITS[:, cell]).tolist() for cell in range(CELLS)]


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


def make_puzzles(rng: np.random.Generator, grids: np.ndarray, held_out: np.ndarray, clues: int) -> np.ndarray:
    """(n, 36) bool, for each grid of `held_out` the cells that are given: `clues` or more, with one solution."""
    given = np.ones(held_out.shape, bool)
    for grid, shown in zip(held_out, given, strict=True):
        for cell in rng.permutation(CELLS):
            shown[cell] = False
            if shown.sum() < clues or solutions(grids, grid, np.flatnonzero(shown)) != 1:
                shown[cell] = True
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
def train(grids: np.ndarray, steps: int, batch: int = 128) -> dict[str, jax.Array]:
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
    def update(weights, state, key, grids):
        grid_key, key = jax.random.split(key)
        x_1 = grids[jax.random.randint(grid_key, (batch,), 0, len(grids))]
        value, gradient = jax.value_and_grad(loss)(weights, x_1, key)
        with jax.numpy_dtype_promotion("standard"):
            change, state = optimizer.update(gradient, state)
        return optax.apply_updates(weights, change), state, value

    weights, grids = make_network(jax.random.key(0)), jnp.asarray(grids, jnp.int32)
    state = optimizer.init(weights)
    for step, key in enumerate(jax.random.split(jax.random.key(1), steps)):
        weights, state, value = update(weights, state, key, grids)
        if step % 250 == 249:
            print(f"step {step + 1}: loss {float(value):.3f}", flush=True)
    return weights
