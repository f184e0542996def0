"""The compiled loop over the moves of a sampler: the question, the model if anything is asked, the new state."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.flow.samplers.denoiser import Denoiser, draw_where, unasked
from dfm_jax.flow.samplers.moves import Moves, State

Rows = dict[str, Any]


def most_moves(rows: Rows) -> int:
    """How many moves `rows` (name -> (M, ...)) has scalars for; no limit if it is empty."""
    return min((len(values) for values in rows.values()), default=2**31 - 1)


def row_at(rows: Rows, number: jax.Array) -> dict[str, Any]:
    """The scalars of move `number`, or of moves (B,) each sequence is at. Beyond the last they are the last one's."""
    last = most_moves(rows) - 1
    return {name: jnp.asarray(values)[jnp.minimum(number, last)] for name, values in rows.items()} | {"number": number}


def run(
    denoiser: Denoiser,
    keys: jax.Array,
    x: jax.Array,
    fixed: jax.Array,
    rows: Rows,
    moves: Moves,
    at: jax.Array,
    *,
    group: int,
) -> tuple[State, jax.Array]:
    """Makes all moves, from x (B, L) int32. Returns the final state, and the tokens (K, B, L) of the frames.

    keys: (B,), one per sequence. fixed: (B, L) bool, positions that keep their token. rows: name -> (M, ...), the
    scalars of each move, with `slot`, the frame that shows the state after it. group: rows per call of the vocabulary
    head (static).

    Moves that end early are made until every sequence has ended. Their frames go by at (K,) (`Moves.frames`).
    """
    # Every frame starts as x_init, which is the state at the first point of the grid.
    saved = jnp.broadcast_to(x[None], (len(at), *x.shape))

    def one_move(carry: tuple[State, jax.Array], row: dict[str, Any]) -> tuple[tuple[State, jax.Array], None]:
        state, saved = carry
        question = moves.ask(row, state, keys)
        if moves.needs:
            answer = draw_where(denoiser, question, moves.needs, group, certain=moves.always_asks)
        else:
            answer = unasked(question.x, moves.needs)
        state = moves.move(row, state, question, answer).counted(question)
        if len(at) and moves.ends_early:
            saved = moves.frames(state, saved, at)
        elif len(at):
            saved = saved.at[row["slot"]].set(state.x, mode="drop")
        return (state, saved), None

    start = State.start(x, fixed, moves.kept(x)), saved
    if not moves.ends_early:
        (state, saved), _ = jax.lax.scan(
            one_move, start, rows | {"number": jnp.arange(most_moves(rows), dtype=jnp.int32)}
        )
        return state, saved

    def unfinished(carry: tuple[jax.Array, tuple[State, jax.Array]]) -> jax.Array:
        number, (state, _) = carry
        return (number < most_moves(rows)) & moves.unfinished(state).any()

    def next_move(carry: tuple[jax.Array, tuple[State, jax.Array]]) -> tuple[jax.Array, tuple[State, jax.Array]]:
        number, made = carry
        return number + 1, one_move(made, row_at(rows, number))[0]

    _, (state, saved) = jax.lax.while_loop(unfinished, next_move, (jnp.int32(0), start))
    return state, saved


def group_size(expected: np.ndarray) -> int:
    """The cheapest number of rows per call of the head, for `expected` (M,) jumps in each step.

    A call costs its rows and a fixed part, for reading the head's weights. On CPUs and GPUs the fixed part is worth
    about 64 rows.
    """
    sizes = 2 ** np.arange(3, 11)
    calls = np.ceil((expected + np.sqrt(expected)) / sizes[:, None])
    return int(sizes[(calls * (sizes[:, None] + 64)).sum(-1).argmin()])
