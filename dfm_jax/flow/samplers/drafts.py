"""Coupled drafts: several moves of a trajectory at a time, with the tokens that `loop.run` gives (mathematics.md E.5).

All noise of move n is keyed by (sequence, position, n), so a move is a fixed map F_n of the state and of the model's
answers. A window guesses `draft` moves ahead and checks the guesses with one evaluation:

  guess     apply F_n, F_n+1, .. with answers of one frozen evaluation, the last one that was right; no trunk runs
  evaluate  the trunk once, on the `draft` inputs that the guessed moves ask about, each at its own time
  check     apply F_n, F_n+1, .. again, now with these evaluations, while each asks what was guessed. What it arrives at
            is right also after the last guess that held, and the next window begins there

So every window makes at least one move, and nothing is approximated. What is compared is the question, that is, the
input of the model: the guessed state may differ in what it only remembers. Moves that ask nothing need no evaluation,
and do not count among the `draft`. Each sequence has its own windows.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dfm_jax.flow.samplers.denoiser import Answer, Denoiser, Question, answer_where, features_of
from dfm_jax.flow.samplers.loop import Rows, most_moves, row_at
from dfm_jax.flow.samplers.moves import Moves, State
from dfm_jax.kernels import target


class Counts(NamedTuple):
    """What drafts cost each sequence, (B,) int32: runs of the trunk one after the other, one a window (two under
    guidance); inputs of the trunk in all; rows of the head for guesses."""

    windows: jax.Array
    inputs: jax.Array
    guessed_rows: jax.Array


class Walk(NamedTuple):
    """Sequences that are each at a move of their own.

    state: of all. number: (B,) int32, the next move. asked: (B,) int32, how many questions were asked in this window.
    going: (B,) bool, whether the sequence goes on in it.
    """

    state: State
    number: jax.Array
    asked: jax.Array
    going: jax.Array


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
    draft: int,
    split: tuple[str, ...] = (),
) -> tuple[State, jax.Array, Counts]:
    """`loop.run` in windows of `draft` >= 2 inputs: the same state and tokens (K, B, L), and what it cost.

    split: axes of an enclosing `jax.shard_map` over which the inputs of a window are divided. All else is then done
    alike on every device, so the other arguments must not differ between devices.
    """
    batch, length = x.shape
    none = 0 * x[:, 0]

    def unfinished(state: State, number: jax.Array) -> jax.Array:
        before_end = number < most_moves(rows)
        return before_end & moves.unfinished(state) if moves.ends_early else before_end

    def step(walk: Walk, row: Rows, asked: Question, answer: Answer, goes: jax.Array) -> Walk:
        state = _move(moves, row, walk.state, asked, answer).counted(_of_batch(asked))
        state = jax.tree.map(lambda new, old: jnp.where(_like(goes, new), new, old), state, walk.state)
        state = state._replace(fixed=walk.state.fixed)
        return walk._replace(state=state, number=walk.number + goes.astype(jnp.int32))

    def guess(walk: Walk, frozen: jax.Array, limit: jax.Array, inputs: Question) -> tuple[Walk, Question, jax.Array]:
        """The inputs of a window, (B, draft, ...), and how many rows of the head it took to guess them."""

        def one(carry: tuple[Walk, Question, jax.Array]) -> tuple[Walk, Question, jax.Array]:
            walk, inputs, head_rows = carry
            row = row_at(rows, walk.number)
            asked = _ask(moves, row, walk.state, keys)
            question = _of_batch(asked)
            asks = question.needed.any(-1) & walk.going
            here = asks[:, None] & (jnp.arange(draft)[None, :] == walk.asked[:, None])
            inputs = jax.tree.map(
                lambda all, one: jnp.where(_like(here, all), one[:, None], all), inputs, _input(question)
            )
            # The last input is not answered: what comes after it is not guessed.
            goes = walk.going & (~asks | (walk.asked + 1 < limit))
            question = question._replace(needed=question.needed & goes[:, None])
            answer = answer_where(denoiser, frozen, question, moves.needs, group)
            walk = step(walk, row, asked, answer, goes)
            asked_now = walk.asked + asks.astype(jnp.int32)
            walk = walk._replace(asked=asked_now, going=goes & unfinished(walk.state, walk.number))
            return walk, inputs, head_rows + question.needed.sum(-1, dtype=jnp.int32)

        return jax.lax.while_loop(lambda carry: carry[0].going.any(), one, (walk, inputs, none))

    def check(walk: Walk, features: jax.Array, inputs: Question, known: jax.Array, saved: jax.Array):
        """The moves that the evaluations of `inputs` allow; `known` (B,) of them are there."""

        def one(carry: tuple[Walk, jax.Array]) -> tuple[Walk, jax.Array]:
            walk, saved = carry
            row = row_at(rows, walk.number)
            asked = _ask(moves, row, walk.state, keys)
            question = _of_batch(asked)
            asks = question.needed.any(-1)
            which = jnp.minimum(walk.asked, draft - 1)
            as_guessed = _equal(_input(question), jax.tree.map(lambda all: _pick(all, which), inputs))
            # The first question is that of the window itself, whatever rounding makes of its time.
            goes = walk.going & (~asks | ((as_guessed | (walk.asked == 0)) & (walk.asked < known)))
            question = question._replace(needed=question.needed & goes[:, None])
            answer = answer_where(denoiser, _pick(features, which), question, moves.needs, group)
            walk = step(walk, row, asked, answer, goes)
            if len(at) and moves.ends_early:
                saved = jnp.where(goes[None, :, None], moves.frames(walk.state, saved, at), saved)
            elif len(at):
                slot = jnp.where(goes, row["slot"], len(at))
                saved = saved.at[slot, jnp.arange(batch)].set(walk.state.x, mode="drop")
            asked_now = walk.asked + (asks & goes).astype(jnp.int32)
            walk = walk._replace(asked=asked_now, going=goes & unfinished(walk.state, walk.number))
            return walk, saved

        return jax.lax.while_loop(lambda carry: carry[0].going.any(), one, (walk, saved))

    def window(carry: tuple[State, jax.Array, jax.Array, Counts, jax.Array]):
        state, number, frozen, counts, saved = carry
        start = Walk(state, number, none, unfinished(state, number))
        # Before the first evaluation there is nothing to guess with.
        limit = jnp.where(counts.windows == 0, 1, draft)
        first = _input(_of_batch(_ask(moves, row_at(rows, number), state, keys)))
        inputs = jax.tree.map(lambda one: jnp.broadcast_to(one[:, None], (batch, draft, *one.shape[1:])), first)
        guessed, inputs, head_rows = guess(start, frozen, limit, inputs)
        known = guessed.asked
        features = jax.lax.cond(
            known.any(),
            lambda inputs: _evaluate(denoiser, inputs, split),
            lambda inputs: jnp.broadcast_to(frozen[:, None], (batch, draft, *frozen.shape[1:])),
            inputs,
        )
        walk, saved = check(start, features, inputs, known, saved)
        last = _pick(features, jnp.maximum(walk.asked - 1, 0))
        frozen = jnp.where(_like(walk.asked > 0, last), last, frozen)
        runs = 1 if first.guidance is None else 2  # of the trunk for an input
        counts = Counts(
            counts.windows + runs * (known > 0).astype(jnp.int32),
            counts.inputs + runs * known,
            counts.guessed_rows + head_rows,
        )
        return walk.state, walk.number, frozen, counts, saved

    state = State.start(x, fixed, moves.kept(x))
    saved = jnp.broadcast_to(x[None], (len(at), batch, length))
    question = jax.eval_shape(lambda: _input(_of_batch(_ask(moves, row_at(rows, none), state, keys))))
    features = jax.eval_shape(lambda question: features_of(denoiser, question), question)
    frozen = jnp.zeros(features.shape, features.dtype) + _like(none, features).astype(features.dtype)
    start = (state, none, frozen, Counts(none, none, none), saved)
    state, _, _, counts, saved = jax.lax.while_loop(lambda carry: unfinished(carry[0], carry[1]).any(), window, start)
    return state, saved, counts


def _ask(moves: Moves, row: Rows, state: State, keys: jax.Array) -> Question:
    """The questions of sequences at moves of their own, row: name -> (B,). Leaves (B, 1, ...)."""
    return jax.vmap(lambda row, state, key: moves.ask(row, _alone(state), key[None]))(row, state, keys)


def _move(moves: Moves, row: Rows, state: State, asked: Question, answer: Answer) -> State:
    """The states after them; `asked` as `_ask` gives it, answer (B, L)."""

    def one(row: Any, state: State, question: Question, answer: Answer) -> State:
        return jax.tree.map(lambda a: a[0], moves.move(row, _alone(state), question, _alone(answer)))

    return jax.vmap(one)(row, state, asked, answer)


def _alone(tree: Any) -> Any:
    """One sequence as a batch of one."""
    return jax.tree.map(lambda a: a[None], tree)


def _of_batch(asked: Question) -> Question:
    """The questions as those of one batch; their further noise is only `_move`'s."""
    return jax.tree.map(lambda a: a[:, 0], asked._replace(noise=None))


def _input(question: Question) -> Question:
    """What the trunk is given, alone."""
    rest = dict.fromkeys(("needed", "keys", "given", "shift", "noise"))
    return question._replace(**rest)  # pyright: ignore[reportArgumentType]


def _equal(one: Question, other: Question) -> jax.Array:
    """(B,) bool: whether the trunk is given the same."""
    same = [(a == b).reshape(a.shape[0], -1).all(-1) for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True)]
    return jnp.stack(same).all(0)


def _evaluate(denoiser: Denoiser, inputs: Question, split: tuple[str, ...]) -> jax.Array:
    """Features (B, k, L, D) of inputs (B, k, ...), those of each device of the axes `split` on it."""
    batch, draft = inputs.x.shape[:2]
    flat = jax.tree.map(lambda a: a.reshape(batch * draft, *a.shape[2:]), inputs)
    devices = math.prod(jax.lax.axis_size(axis) for axis in split)
    own = -(-batch * draft // devices)
    # A processor multiplies larger matrices no faster, and rounds their products differently. There the inputs take
    # turns in batches of the size that one move at a time has, so that the features are the same to the last bit.
    turns = -(-own // batch) if target.current().platform == "cpu" else 1
    size = -(-own // turns)

    def ready(all: jax.Array) -> jax.Array:
        spare = devices * turns * size - len(all)
        all = jnp.concatenate([all, jnp.broadcast_to(all[:1], (spare, *all.shape[1:]))])
        if split:
            all = jax.lax.dynamic_slice_in_dim(all, jax.lax.axis_index(split) * turns * size, turns * size)
        return all.reshape(turns, size, *all.shape[1:])

    parts = jax.tree.map(ready, flat)
    if turns == 1:
        features = features_of(denoiser, jax.tree.map(lambda a: a[0], parts))
    else:
        features = jax.lax.map(lambda part: features_of(denoiser, part), parts)
        features = features.reshape(turns * size, *features.shape[2:])
    if split:
        features = jax.lax.all_gather(features, split, tiled=True)
    return features[: batch * draft].reshape(batch, draft, *features.shape[1:])


def _pick(all: jax.Array, which: jax.Array) -> jax.Array:
    """all[b, which[b]], (B, ...) of (B, k, ...)."""
    return jnp.take_along_axis(all, which.reshape(-1, *(1,) * (all.ndim - 1)), 1)[:, 0]


def _like(flags: jax.Array, array: jax.Array) -> jax.Array:
    """`flags` with axes of 1 added, to go with `array`."""
    return flags.reshape(*flags.shape, *(1,) * (array.ndim - flags.ndim))
