"""The trained network as the solvers ask for it: the trunk on whole sequences, the fused head at the rows that jump."""

import dataclasses
from collections.abc import Callable

from jax import Array

from dfm_jax import flow
from dfm_jax.flow.samplers.denoiser import Guide, check_draws, mixed
from dfm_jax.kernels import vocab_head
from dfm_jax.models import head
from dfm_jax.models.transformer import Transformer

Temperature = float | Callable[[Array], Array]


@dataclasses.dataclass(frozen=True, eq=False)
class TransformerDenoiser:
    """A `flow.Denoiser`: x_1 ~ softmax(posterior logits / temperature) within its nucleus of mass top_p.

    Attributes:
        model: the network. Build the denoiser inside the function that is compiled, with the model as its argument:
            as a constant of the program its parameters would be compiled in.
        prediction: what the network's logits mean (`flow.Path.prediction`): what it suppresses is never drawn, what it
            carries over is x_t itself, and its shift turns leave-one-out logits into posterior ones.
        network_time: the number the network is told for t (B,); by default t.
        temperature: a number >= 0 (0: the most probable token), or a function of t (N,) -> (N,) above 0.
        top_p: in (0, 1], of the posterior after the temperature; 1 is off.
        implementation: of the head, as `kernels.vocab_head` names it.

    Raises:
        ValueError: temperature or top_p out of range.
    """

    model: Transformer
    prediction: flow.Prediction
    network_time: Callable[[Array], Array] | None = None
    temperature: Temperature = 1.0
    top_p: float = 1.0
    implementation: str | None = None

    _head: vocab_head.Head = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        check_draws(self.temperature, self.top_p)
        # Rounded here, before the loop over the steps, the vocabulary's matrix is not rounded again in each of them.
        rounded = head.of(self.model, implementation=self.implementation)
        kernel = rounded.kernel.astype(self.model.config.compute_dtype)
        object.__setattr__(self, "_head", dataclasses.replace(rounded, kernel=kernel))

    def features(self, x: Array, t: Array) -> Array:
        """(B, L, D) in the network's compute_dtype, from x (B, L) int32 and t (B,) float32."""
        # The head multiplies in compute_dtype: rounding here spares a copy of the rows that jump.
        return self._trunk(x, t).astype(self.model.config.compute_dtype)

    def guided_features(self, x: Array, t: Array, guide: Guide) -> Array:
        """`features` (B, L, D) under guidance: two runs of the trunk, mixed in float32 before they are rounded."""
        own, without = self._trunk(x, t), self._trunk(guide.without, t)
        return mixed(own, without, guide.gamma).astype(self.model.config.compute_dtype)

    def _trunk(self, x: Array, t: Array) -> Array:
        return self.model(x, t if self.network_time is None else self.network_time(t))

    def draw(self, keys: Array, features: Array, x_t: Array, t: Array) -> Array:
        """x_1 (N,) int32, each row from its own key alone."""
        asked = self._asked(features, x_t, t)
        if self._greedy:
            x_1 = vocab_head.argmax(*asked)
        else:
            x_1 = vocab_head.sample(*asked, keys, temperature=self._temperature_at(t), top_p=self.top_p)
        return self.prediction.carry_over(x_1, x_t)

    def answer(
        self,
        keys: Array,
        features: Array,
        x_t: Array,
        t: Array,
        needs: flow.Needs,
        given: Array | None = None,
        shift: Array | None = None,
    ) -> flow.Answer:
        """x_1 as `draw` gives it, and what `needs` asks of the posterior before temperature and top-p.

        given: (N,) int32 tokens. shift: (N,) float32, added to the logit at x_t.
        """
        drawn = vocab_head.draw(
            *self._asked(features, x_t, t, given, shift),
            None if self._greedy else keys,
            temperature=1.0 if self._greedy else self._temperature_at(t),
            top_p=self.top_p,
            asked=needs.asked,
        )
        answer = flow.Answer(
            drawn.token,
            drawn.log_prob,
            drawn.top_two,
            drawn.entropy,
            None if drawn.at_ids is None else drawn.at_ids[:, 0],
        )
        carried = self.prediction.carries_all_but
        return answer if carried is None else answer.carried_over(x_t, x_t != carried, given)

    @property
    def _greedy(self) -> bool:
        return not callable(self.temperature) and self.temperature == 0

    def _temperature_at(self, t: Array) -> Array | float:
        return self.temperature(t) if callable(self.temperature) else self.temperature

    def _asked(
        self, features: Array, x_t: Array, t: Array, given: Array | None = None, shift: Array | None = None
    ) -> tuple[vocab_head.Head, vocab_head.Query, Array]:
        if self.prediction.shift is not None:
            own = self.prediction.shift(x_t, t)  # of the logit at x_t
            shift = own if shift is None else own + shift
        query = vocab_head.Query(
            ids=None if given is None else given[:, None],  # pyright: ignore[reportArgumentType]
            shift=shift,
            shift_ids=None if shift is None else x_t,
            suppress=self.prediction.suppress,
        )
        return self._head, query, features


def posterior_logits(denoiser: TransformerDenoiser, x: Array, t: Array) -> Array:
    """The (B, L, S) posterior logits that `draw` draws from at temperature 1, for small uses and tests."""
    logits = denoiser.model.logits(denoiser.features(x, t), suppress=denoiser.prediction.suppress)
    return denoiser.prediction.posterior_logits(logits, x, t)
