"""The compiled loop over the moves of a sampler: the question, the model if anything is asked, the new state."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.flow.samplers.denoiser import Denoiser, draw_where, unasked
from dfm_jax.flow.samplers.moves import Moves, State

SHARE = 1e-6  # how far a share may be above the one asked for, for rounding


def run(
    denoiser: Denoiser,
    keys: jax.Array,
    x: jax.Array,
    fixed: jax.Array,
    rows: dict[str, jax.Array],
    moves: Moves,
    *,
    group: int,
    slots: int,
    shares: jax.Array | None = None,
) -> tuple[State, jax.Array]:
    """Makes all moves, from x (B, L) int32. Returns the final state, and the tokens (slots, B, L) of rows["slot"].

    keys: (B,), one per sequence. fixed: (B, L) bool, positions that keep their token. rows: name -> (M,), the scalars
    of each move, with `time`, `number` and `slot`. group: rows per call of the vocabulary head (static).

    Moves that end early are made until every sequence has ended. Slot k then has the last tokens of which at most the
    share shares[k] was revealed, shares (slots,).
    """
    # Every slot starts as x_init, which is the state at the first point of the grid.
    saved = jnp.broadcast_to(x[None], (slots, *x.shape))

    def one_move(carry: tuple[State, jax.Array], row: dict[str, Any]) -> tuple[tuple[State, jax.Array], None]:
        state, saved = carry
        question = moves.ask(row, state, keys)
        if moves.needs:
            answer = draw_where(denoiser, question, moves.needs, group, certain=moves.always_asks)
        else:
            answer = unasked(question.x, moves.needs)
        state = moves.move(row, state, question, answer).counted(question)
        if slots and not moves.ends_early:
            saved = saved.at[row["slot"]].set(state.x, mode="drop")
        return (state, saved), None

    start = State.start(x, fixed, moves.kept(x)), saved
    if not moves.ends_early:
        (state, saved), _ = jax.lax.scan(one_move, start, rows)
        return state, saved

    def unfinished(carry: tuple[jax.Array, tuple[State, jax.Array]]) -> jax.Array:
        number, (state, _) = carry
        return (number < len(rows["number"])) & moves.unfinished(state).any()

    def next_move(carry: tuple[jax.Array, tuple[State, jax.Array]]) -> tuple[jax.Array, tuple[State, jax.Array]]:
        number, (state, saved) = carry
        row = {name: value[number] for name, value in rows.items()}
        (state, _), _ = one_move((state, saved), row)
        if slots:
            assert shares is not None
            reached = moves.share(state)[None] <= shares[:, None] + SHARE
            saved = jnp.where(reached[..., None], state.x[None], saved)
        return number + 1, (state, saved)

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
