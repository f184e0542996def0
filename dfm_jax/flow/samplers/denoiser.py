"""What a sampler asks of a model: the features of a sequence, and answers at the positions that need them."""

import dataclasses
import enum
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from dfm_jax.flow import categorical
from dfm_jax.flow.head import look_at_logits


class Needs(enum.Flag):
    """What a sampler needs from the model at a position: nothing, a draw of x_1, or also how sure the model is of it.

    DRAWS: x_1 ~ posterior. LOG_PROB: the log-probability of that x_1. TOP_TWO: the largest and the second largest
    probability. ENTROPY: of the posterior. AT_GIVEN: the log-probability of a token that the sampler names. These speak
    of the posterior before temperature and top-p. LEAVE_ONE_OUT: all of it after a shift of the logit at x_t, which
    the sampler names; it makes xhat of the posterior.
    """

    NOTHING = 0
    DRAWS = enum.auto()
    LOG_PROB = enum.auto()
    TOP_TWO = enum.auto()
    ENTROPY = enum.auto()
    AT_GIVEN = enum.auto()
    LEAVE_ONE_OUT = enum.auto()

    @property
    def certainty(self) -> "Needs":
        """What is needed beside the draw."""
        return self & ~Needs.DRAWS

    @property
    def asked(self) -> frozenset[str]:
        """The same, as `kernels.vocab_head.draw` names it."""
        return frozenset(word for need, word in _ASKED.items() if need in self)


_ASKED = {Needs.LOG_PROB: "log_prob", Needs.TOP_TWO: "top_two", Needs.ENTROPY: "entropy", Needs.AT_GIVEN: "at_ids"}


class Answer(NamedTuple):
    """What a model says at a position, of any leading shape (...): (N,) rows, or (B, L) for a sampler.

    x_1: int32, drawn where it was asked for. The rest is float32, None unless asked for (`Needs`): log_prob (...) of
    x_1 and at_given (...) of a given token, nats; top_two (..., 2) probabilities, the larger first; entropy (...) nats.
    Where a sampler did not ask, x_1 is x_t and the rest is what a posterior that is sure of x_t has.
    """

    x_1: jax.Array
    log_prob: jax.Array | None = None
    top_two: jax.Array | None = None
    entropy: jax.Array | None = None
    at_given: jax.Array | None = None

    def carried_over(self, x_t: jax.Array, carried: jax.Array, given: jax.Array | None) -> "Answer":
        """The same, but sure of x_t where it is `carried` over. x_t, carried and given have the shape (...)."""
        sure = jax.nn.one_hot(jnp.zeros_like(x_t), 2, dtype=jnp.float32)
        at_given = None if given is None else jnp.where(given == x_t, 0.0, -jnp.inf)
        return Answer(
            jnp.where(carried, x_t, self.x_1),
            None if self.log_prob is None else jnp.where(carried, 0.0, self.log_prob),
            None if self.top_two is None else jnp.where(carried[..., None], sure, self.top_two),
            None if self.entropy is None else jnp.where(carried, 0.0, self.entropy),
            None if self.at_given is None or at_given is None else jnp.where(carried, at_given, self.at_given),
        )


@runtime_checkable
class Denoiser(Protocol):
    """A model of the posterior p(x_1^i = v | x_t), in two parts so that a sampler can save work.

    `features` runs the trunk on whole sequences, once per step. `draw` runs the vocabulary head only at the positions
    that need x_1, so no (B, L, S) array has to exist.

    A sampler that looks at the posterior (`Needs` beyond DRAWS) also calls a third method: `answer(keys, features, x_t,
    t, needs, given, shift) -> Answer`. It takes what `draw` takes, with what is needed (static), the given tokens (N,)
    int32 or None, and the shift (N,) float32 of the logit at x_t, in nats, or None. Its x_1 is that of `draw`.
    """

    def features(self, x: jax.Array, t: jax.Array) -> jax.Array:
        """Features (B, L, D), of a float type, from tokens x (B, L) int32 and times t (B,) float32."""
        ...

    def draw(self, keys: jax.Array, features: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
        """Draws x_1 ~ posterior, (N,) int32, from keys (N,), features (N, D), x_t (N,) int32 and t (N,) float32.

        Row n may depend only on its own key and inputs. The draw is then the same however the solver groups rows, and
        on every mesh.
        """
        ...


def check_draws(temperature: float | Callable[[jax.Array], jax.Array], top_p: float) -> None:
    """Raises ValueError unless temperature >= 0, where it is a number, and 0 < top_p <= 1."""
    if not callable(temperature) and not temperature >= 0:
        raise ValueError(f"temperature = {temperature}: expected a number >= 0, or a function of t")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p = {top_p}: expected 0 < top_p <= 1")


@dataclasses.dataclass(frozen=True, eq=False)
class DenseDenoiser:
    """A `Denoiser` of a model that returns posterior logits; its features are the logits. See `from_logits`."""

    logits: Callable[[jax.Array, jax.Array], jax.Array]
    temperature: float | Callable[[jax.Array], jax.Array] = 1.0
    top_p: float = 1.0
    suppress: int | None = None
    num_states: int | None = None

    def __post_init__(self):
        check_draws(self.temperature, self.top_p)

    def features(self, x: jax.Array, t: jax.Array) -> jax.Array:
        """The logits (B, L, S) of x (B, L) int32 at t (B,). Raises ValueError for logits of another shape."""
        logits = self.logits(x, t)
        states = logits.shape[-1] if self.num_states is None else self.num_states
        if logits.shape != (*x.shape, states):
            raise ValueError(f"logits of shape {logits.shape}: expected (B, L, S) = {(*x.shape, states)}")
        return logits

    def draw(self, keys: jax.Array, features: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
        """x_1 (N,) int32 from logits `features` (N, S), keys (N,) and t (N,); x_t is not used."""
        logits = self._allowed(features)
        if callable(self.temperature):
            logits = categorical.temper(logits, jnp.broadcast_to(self.temperature(t), t.shape))
        elif self.temperature != 1.0:
            logits = categorical.temper(logits, jnp.full(t.shape, self.temperature, jnp.float32))
        if self.top_p < 1.0:
            logits = categorical.nucleus(logits, self.top_p)
        return categorical.draw(keys, logits)

    def answer(
        self,
        keys: jax.Array,
        features: jax.Array,
        x_t: jax.Array,
        t: jax.Array,
        needs: Needs,
        given: jax.Array | None = None,
        shift: jax.Array | None = None,
    ) -> Answer:
        """x_1 as `draw` gives it, and what `needs` asks of softmax(logits) at N rows.

        given: (N,) int32 tokens. shift: (N,) float32, added to the logit at x_t.
        """
        if shift is not None:
            features = features.astype(jnp.float32)
            features = features.at[jnp.arange(len(x_t)), x_t].add(shift)
        x_1 = self.draw(keys, features, x_t, t)
        ids = None if given is None else given[:, None]
        drawn = look_at_logits(self._allowed(features), x_1, ids, needs.asked)
        at_given = None if drawn.at_ids is None else drawn.at_ids[:, 0]
        return Answer(x_1, drawn.log_prob, drawn.top_two, drawn.entropy, at_given)

    def _allowed(self, features: jax.Array) -> jax.Array:
        logits = features.astype(jnp.float32)
        return logits if self.suppress is None else logits.at[:, self.suppress].set(-jnp.inf)


def from_logits(
    fn: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    temperature: float | Callable[[jax.Array], jax.Array] = 1.0,
    top_p: float = 1.0,
    suppress: int | None = None,
) -> DenseDenoiser:
    """The `Denoiser` of a dense model: fn(x (B, L) int32, t (B,) float32) -> posterior logits (B, L, S).

    x_1 is drawn from softmax(logits / temperature), restricted after that to its nucleus of mass top_p.

    temperature: a number >= 0, where 0 gives the most probable token, or a function of t (N,) -> (N,). suppress: a
    state that is never drawn; a solver sets it to the mask id of its source. Logits of a leave-one-out model must go
    through `flow.to_posterior` first.

    Raises ValueError for temperature < 0, top_p outside (0, 1], and, in use, for logits of another shape.
    """
    return DenseDenoiser(fn, temperature, top_p, suppress)


class Question(NamedTuple):
    """What a sampler asks the model before one of its moves (`moves.Moves`).

    x: (B, L) int32, the tokens that the model is given. t: (B,) float32, the time on the schedule of the training.
    needed: (B, L) bool, where an answer is used. keys: (B,) typed; the draw at (b, l) has the key fold_in(keys[b], l);
    or (B, L), these keys themselves.
    given: (B, L) int32, the tokens of Needs.AT_GIVEN, or None. shift: (B, L) float32, that of Needs.LEAVE_ONE_OUT, or
    None. guidance: see `Guide`, or None. noise: any further noise of the move.
    """

    x: jax.Array
    t: jax.Array
    needed: jax.Array
    keys: jax.Array
    given: jax.Array | None = None
    shift: jax.Array | None = None
    guidance: "Guide | None" = None
    noise: Any = None


class Guide(NamedTuple):
    """Guidance of a question: the posterior is prop. to post(v | x)^gamma post(v | without)^(1 - gamma).

    without: (B, L) int32, the question's tokens without the prompt. gamma: (B,) float32; 1 is the plain posterior.
    """

    without: jax.Array
    gamma: jax.Array


def check_answers(denoiser: Denoiser, needs: Needs, by: str) -> None:
    """Raises ValueError if `needs` goes beyond draws and `denoiser` has no method `answer`. by: who needs it."""
    if needs.certainty and not hasattr(denoiser, "answer"):
        wanted = ", ".join(need.name for need in needs.certainty if need.name)
        raise ValueError(
            f"model = {type(denoiser).__name__}: expected a denoiser with the method `answer` for {by}, needs {wanted}"
        )


def unasked(x: jax.Array, needs: Needs) -> Answer:
    """The answers (B, L) before any was asked for: x_1 = x, of which the model is sure."""
    zero = jnp.zeros(x.shape, jnp.float32) + 0 * x.astype(jnp.float32)
    return Answer(
        x,
        zero if Needs.LOG_PROB in needs else None,
        jnp.stack([zero + 1, zero], -1) if Needs.TOP_TWO in needs else None,
        zero if Needs.ENTROPY in needs else None,
        zero if Needs.AT_GIVEN in needs else None,
    )


def features_of(denoiser: Denoiser, question: Question) -> jax.Array:
    """The trunk's part: features (B, L, D) of the question's tokens. Under guidance the trunk runs twice.

    The head is linear, so that the logits of mixed features are the mixed logits. A denoiser whose head works in a
    narrower type than its trunk has a method `guided_features(x, t, guide)`, which mixes before it rounds.
    """
    if question.guidance is None:
        return denoiser.features(question.x, question.t)
    if hasattr(denoiser, "guided_features"):
        return denoiser.guided_features(question.x, question.t, question.guidance)  # pyright: ignore
    own = denoiser.features(question.x, question.t)
    without = denoiser.features(question.guidance.without, question.t)
    return mixed(own, without, question.guidance.gamma).astype(own.dtype)


def mixed(own: jax.Array, without: jax.Array, gamma: jax.Array) -> jax.Array:
    """gamma own + (1 - gamma) without, (B, L, D) float32. A logit that is -inf in either stays -inf."""
    own, without = own.astype(jnp.float32), without.astype(jnp.float32)
    never = (own == -jnp.inf) | (without == -jnp.inf)
    weight = gamma[:, None, None]
    return jnp.where(never, -jnp.inf, weight * own + (1.0 - weight) * without)


def answer_where(
    denoiser: Denoiser, features: jax.Array, question: Question, needs: Needs, group: int, *, certain: bool = False
) -> Answer:
    """The head's part: answers (B, L) where `question.needed`, from features (B, L, D) of the trunk.

    The features may be those of another input; the draw then is that of the other input's posterior. group: rows per
    call of the head (static). The needed positions are gathered into groups of `group` rows, as many as it takes.
    certain: something is known to be needed (static). The first group is then made without a question whether it has
    a row: each such question makes a GPU wait for its host.
    """
    x, t, needed = question.x, question.t, question.needed
    batch, length = x.shape
    positions = batch * length
    features = features.reshape(positions, features.shape[-1])
    flat = x.reshape(-1)
    given, shift = (None if a is None else a.reshape(-1) for a in (question.given, question.shift))
    padded = -(-positions // group) * group
    order = jnp.nonzero(needed.reshape(-1), size=padded, fill_value=positions)[0].astype(jnp.int32)
    count = needed.sum(dtype=jnp.int32)

    def one_group(state):
        done, answers = state
        rows = jax.lax.dynamic_slice(order, (done,), (group,))
        inside = jnp.minimum(rows, positions - 1)
        sequence, place = inside // length, inside % length
        if question.keys.ndim == 1:
            keys = jax.vmap(jax.random.fold_in)(question.keys[sequence], place)
        else:
            keys = question.keys[sequence, place]
        asked = (keys, features[inside], flat[inside], t[sequence])
        if needs.certainty:
            of_rows = (None if a is None else a[inside] for a in (given, shift))
            drawn = denoiser.answer(*asked, needs, *of_rows)  # pyright: ignore[reportAttributeAccessIssue]
        else:
            drawn = Answer(denoiser.draw(*asked))
        place_rows = lambda all, some: all.at[rows].set(some.astype(all.dtype), mode="drop")  # noqa: E731
        return done + group, jax.tree.map(place_rows, answers, drawn)

    start = jax.tree.map(lambda a: a.reshape(positions, *a.shape[2:]), unasked(x, needs))
    state = (jnp.int32(0), start)
    if certain:
        state = one_group(state)
    if not certain or padded > group:
        state = jax.lax.while_loop(lambda state: state[0] < count, one_group, state)
    return jax.tree.map(lambda a: a.reshape(batch, length, *a.shape[1:]), state[1])


def draw_where(denoiser: Denoiser, question: Question, needs: Needs, group: int, *, certain: bool = False) -> Answer:
    """Trunk and head: answers (B, L) where `question.needed`. If nothing is needed the trunk does not run.

    certain: something is known to be needed (static), and is not asked for.
    """

    def some(question: Question) -> Answer:
        return answer_where(denoiser, features_of(denoiser, question), question, needs, group, certain=True)

    asked = question._replace(noise=None)  # of no use to the model
    if certain:
        return some(asked)
    return jax.lax.cond(question.needed.any(), some, lambda question: unasked(question.x, needs), asked)
