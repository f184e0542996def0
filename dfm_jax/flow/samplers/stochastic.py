"""Steps of the mixture path whose outcome depends on whether x_1 = z, or on the token (mathematics.md C.2, E.1).

Each uses at most two uniforms per position, and looks at x_1 only where `needs_x_1` says so. Competing events are
ordered: those that do not depend on x_1 are decided first.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax.flow.samplers.grid import TimeGrid
from dfm_jax.flow.samplers.step import DivFree, FirstOfTwoClocks, Knots, Plan, Row, Step, deltas, is_uniform, source_law

REMASKING = ("fb", "cap", "rescale")
PSI_MODES = ("constant", "cap", "rescale")


def others_law(source: Any) -> np.ndarray:
    """The law of the 'others' draw (`fresh.fresh_tokens`), (S, S) float64 indexed [z, y].

    It is uniform on y != z, the mask, or for a general source p itself, where y = z is no move.
    """
    states = source.num_states
    if source.mask_id is not None:
        return np.tile(np.eye(states)[source.mask_id], (states, 1))
    if is_uniform(source):
        return (1.0 - np.eye(states)) / (states - 1)
    return np.tile(source_law(source), (states, 1))


@dataclasses.dataclass(frozen=True)
class DivFreeEuler(FirstOfTwoClocks):
    """The reference's Euler step with its divergence-free term c = `div_free`.

    Two clocks run: one of rate A = (1 + c) lambda_t to x_1 (if x_1 != z), one of rate B (1 - p(z)) to y ~ p with y !=
    z, where B = c mu_t. The first to ring within h decides. The step to t = 1 gives x_1. c >= 0 is a number or a
    function of t. It counts as 0 where kappa = 0; the reference divides by kappa there. For a general source y ~ p may
    be z, and the second rate is B, which is the same to first order.
    """

    div_free: DivFree = 0.0
    words: int = dataclasses.field(default=2, init=False)
    fresh: str = dataclasses.field(default="others", init=False)

    def plan(self, scheduler: Any, source: Any, grid: TimeGrid) -> Plan:
        knots = Knots.of(scheduler, grid)
        c = np.where(knots.kappa[:-1] > 0, knots.corrector(self.div_free), 0.0)
        to_x_1 = np.where(knots.last, np.inf, knots.h * (1.0 + c) * knots.rate)
        # At 1e30 the clock surely rings. Infinity times 1 - p(z) = 0 would be NaN.
        back = np.where(knots.last, 0.0, np.minimum(knots.h * c * knots.backward, 1e30))
        return Plan(grid.starts, {"to_x_1": to_x_1, "back": back}, knots.index, -np.expm1(-to_x_1))

    def _exit(self, p: Any, source: Any) -> Any:
        """The probability that a draw y ~ p counts as a jump: 1 - p(z), or 1 if y may be z."""
        return 1.0 - p if source.mask_id is not None or is_uniform(source) else p * 0 + 1.0

    def clocks(self, row: Row, z: jax.Array, u: jax.Array, source: Any) -> tuple[jax.Array, jax.Array]:
        back = row["back"] * self._exit(source.probs(z), source)
        return -jnp.log1p(-u[0]) / row["to_x_1"], -jnp.log1p(-u[1]) / back

    def transition_matrix(self, row: Row, source: Any) -> np.ndarray:
        to_x_1, stay = deltas(source.num_states)
        same = np.eye(source.num_states)[:, :, None]
        p = source_law(source)[:, None, None]
        back = row["back"] * self._exit(p, source) * np.ones_like(same)
        if np.isinf(row["to_x_1"]):
            return to_x_1
        ahead = row["to_x_1"] * (1.0 - same)
        total = ahead + back
        jump = -np.expm1(-total)
        share = np.divide(ahead, total, out=np.zeros_like(total), where=total > 0)
        y = others_law(source)[:, None, :]
        return (1 - jump) * stay + jump * (share * to_x_1 + (1 - share) * y)


@dataclasses.dataclass(frozen=True)
class Multiflow(Step):
    """Multiflow's detailed-balance noise of strength eta between x_1 and the other states, to first order in h.

    Mask source: m jumps to x_1 at lambda + eta kappa / sigma, and x_1 to m at eta. Uniform source: y jumps to x_1 at
    lambda + eta (1 + (V-1) kappa) / sigma, and x_1 to each y at eta. Probabilities are cut at 1, so the number of steps
    must be far above eta V. The step to t = 1 has no noise.
    Raises ValueError for eta < 0, and in `plan` for any other source.
    """

    eta: float = 1.0
    words: int = dataclasses.field(default=1, init=False)
    fresh: str = dataclasses.field(default="others", init=False)

    def __post_init__(self):
        if not self.eta >= 0:
            raise ValueError(f"eta = {self.eta}: expected eta >= 0")

    def plan(self, scheduler: Any, source: Any, grid: TimeGrid) -> Plan:
        if source.mask_id is None and not is_uniform(source):
            raise ValueError("step = 'multiflow': expected a mask or uniform source")
        knots = Knots.of(scheduler, grid)
        kappa, sigma = knots.kappa[:-1], knots.sigma[:-1]
        if source.mask_id is None:
            gain, leave = (1.0 + (source.num_states - 1) * kappa) / sigma, source.num_states - 1
        else:
            gain, leave = kappa / sigma, 1
        jump = np.where(knots.last, 1.0, np.minimum(1.0, knots.h * (knots.rate + self.eta * gain)))
        back = np.where(knots.last, 0.0, np.minimum(1.0, knots.h * self.eta * leave))
        return Plan(grid.starts, {"jump": jump, "back": back}, knots.index, np.maximum(jump, back))

    def needs_x_1(self, row: Row, z: jax.Array, u: jax.Array, source: Any) -> jax.Array:
        return u[0] < jnp.maximum(row["jump"], row["back"])

    def transition(self, row: Row, z: jax.Array, x_1: jax.Array, u: jax.Array, y: jax.Array, source: Any) -> jax.Array:
        away = jnp.where(u[0] < row["jump"], x_1, z)
        return jnp.where(x_1 != z, away, jnp.where(u[0] < row["back"], y, z))

    def transition_matrix(self, row: Row, source: Any) -> np.ndarray:
        to_x_1, stay = deltas(source.num_states)
        same = np.eye(source.num_states)[:, :, None]
        forward = row["jump"] * to_x_1 + (1 - row["jump"]) * stay
        backward = row["back"] * others_law(source)[:, None, :] + (1 - row["back"]) * stay
        return (1 - same) * forward + same * backward


@dataclasses.dataclass(frozen=True)
class Ancestral(Step):
    """The time-reversal ancestral step (D3PM, UDLM): T(x | z, x_1) = q(z | x) C_s(x | x_1) / C_t(z | x_1).

    q(z | x) = a 1[x = z] + (1 - a) p(z) with a = kappa_t / kappa_s. This is the process of the time-reversal bound.
    At z != x_1 the token becomes x_1 with probability (1-a) kappa_s / sigma_t, and y ~ p with (1-a) sigma_s / sigma_t.
    At z = x_1 it becomes y ~ p with (1-a) p(z) sigma_s / (kappa_t + sigma_t p(z)). For the mask source it is `Exact`.
    """

    words: int = dataclasses.field(default=1, init=False)
    fresh: str = dataclasses.field(default="source", init=False)

    def plan(self, scheduler: Any, source: Any, grid: TimeGrid) -> Plan:
        knots = Knots.of(scheduler, grid)
        kappa_t, kappa_s = knots.kappa[:-1], knots.kappa[1:]
        sigma_t, sigma_s = knots.sigma[:-1], knots.sigma[1:]
        lost = 1.0 - kappa_t / kappa_s
        scalars = {
            "fresh": lost * sigma_s / sigma_t,
            "leave": lost * (sigma_s + kappa_s) / sigma_t,
            "fresh_flux": lost * sigma_s,
            "kappa": kappa_t,
            "sigma": sigma_t,
        }
        return Plan(grid.starts, scalars, knots.index, scalars["leave"])

    def _refresh(self, row: Row, p: Any) -> Any:
        """The probability of y ~ p at z = x_1. It is at most that at z != x_1, so it can be decided without x_1."""
        return row["fresh_flux"] * p / (row["kappa"] + row["sigma"] * p)

    def needs_x_1(self, row: Row, z: jax.Array, u: jax.Array, source: Any) -> jax.Array:
        return (u[0] < row["leave"]) & ~(u[0] < self._refresh(row, source.probs(z)))

    def transition(self, row: Row, z: jax.Array, x_1: jax.Array, u: jax.Array, y: jax.Array, source: Any) -> jax.Array:
        away = jnp.where(u[0] < row["fresh"], y, jnp.where(u[0] < row["leave"], x_1, z))
        settled = u[0] < self._refresh(row, source.probs(z))
        return jnp.where(settled, y, jnp.where(x_1 != z, away, z))

    def transition_matrix(self, row: Row, source: Any) -> np.ndarray:
        to_x_1, stay = deltas(source.num_states)
        same = np.eye(source.num_states)[:, :, None]
        p = source_law(source)
        moving = (row["leave"] - row["fresh"]) * to_x_1 + row["fresh"] * p
        moving = moving + (1 - row["leave"]) * stay
        with np.errstate(invalid="ignore"):
            refresh = np.nan_to_num(self._refresh(row, p))[:, None, None]
        return (1 - same) * moving + same * (refresh * p + (1 - refresh) * stay)


@dataclasses.dataclass(frozen=True)
class Psi(Ancestral):
    """A psi-sampler (2602.21185): `Ancestral` with probability psi, and else x_s ~ C_s(. | x_1), x_1 ~ posterior at t.

    The marginal C_s is kept for a fixed x_1. `mode` sets 1 - psi: 'constant' is eta; 'cap' is min(eta, max) / sigma_s
    and 'rescale' is eta max / sigma_s, with max = min(1, sigma_s / kappa_t), both at most 1. With the mask source a
    revealed token is masked with probability (1 - psi) sigma_s: these are ReMDM's modes of the same name. A time that
    the grid holds is where it corrects. eta = 0 is `Ancestral`.
    Raises ValueError for another mode, and eta outside [0, 1].
    """

    mode: str = "constant"
    eta: float = 0.1
    words: int = dataclasses.field(default=2, init=False)

    def __post_init__(self):
        if self.mode not in PSI_MODES:
            raise ValueError(f"mode = {self.mode!r}: expected {', '.join(PSI_MODES)}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta = {self.eta}: expected 0 <= eta <= 1")

    def plan(self, scheduler: Any, source: Any, grid: TimeGrid) -> Plan:
        knots, plan = Knots.of(scheduler, grid), super().plan(scheduler, source, grid)
        kappa_t, kappa_s, sigma_s = knots.kappa[:-1], knots.kappa[1:], knots.sigma[1:]
        again = np.full(grid.steps, float(self.eta))
        if self.mode != "constant":
            with np.errstate(divide="ignore", invalid="ignore"):
                most = np.where(kappa_t > 0, np.minimum(1.0, sigma_s / kappa_t), 1.0)
                again = (np.minimum(self.eta, most) if self.mode == "cap" else self.eta * most) / sigma_s
            # In the step to t = 1 there is no noise to draw again.
            again = np.where(knots.last, 0.0, np.minimum(again, 1.0))
        scalars = {**plan.scalars, "again": again, "kappa_s": kappa_s}
        return plan._replace(scalars=scalars, jumps=(1 - again) * plan.jumps + again * kappa_s)

    def needs_x_1(self, row: Row, z: jax.Array, u: jax.Array, source: Any) -> jax.Array:
        return jnp.where(u[1] < row["again"], u[0] < row["kappa_s"], super().needs_x_1(row, z, u, source))

    def transition(self, row: Row, z: jax.Array, x_1: jax.Array, u: jax.Array, y: jax.Array, source: Any) -> jax.Array:
        again = jnp.where(u[0] < row["kappa_s"], x_1, y)
        return jnp.where(u[1] < row["again"], again, super().transition(row, z, x_1, u, y, source))

    def transition_matrix(self, row: Row, source: Any) -> np.ndarray:
        to_x_1, _ = deltas(source.num_states)
        again = row["kappa_s"] * to_x_1 + (1 - row["kappa_s"]) * source_law(source)
        return row["again"] * again + (1 - row["again"]) * super().transition_matrix(row, source)


@dataclasses.dataclass(frozen=True)
class Remask(Step):
    """ReMDM, for the mask source: a token is masked again with probability sig; masks are revealed so that C_s holds.

    A mask is revealed with probability (kappa_s - (1 - sig) kappa_t) / (1 - kappa_t). `schedule` sets sig, with
    max = min(1, (1 - kappa_s) / kappa_t): 'fb' is min(max, (kappa_s - kappa_t) / kappa_t), and 0 at kappa_t = 0; 'cap'
    is min(eta, max); 'rescale' is eta max. The error of 'fb' is of order 1 / N for N steps. A constant eta masks so
    often that the order drops to about one half (mathematics.md E.1).
    Raises ValueError for another schedule, eta outside [0, 1], and in `plan` for another source.
    """

    schedule: str = "fb"
    eta: float = 0.1
    words: int = dataclasses.field(default=1, init=False)
    fresh: str = dataclasses.field(default="none", init=False)

    def __post_init__(self):
        if self.schedule not in REMASKING:
            raise ValueError(f"schedule = {self.schedule!r}: expected {', '.join(REMASKING)}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta = {self.eta}: expected 0 <= eta <= 1")

    def plan(self, scheduler: Any, source: Any, grid: TimeGrid) -> Plan:
        if source.mask_id is None:
            raise ValueError("step = 'remask': expected a mask source only")
        knots = Knots.of(scheduler, grid)
        kappa_t, kappa_s = knots.kappa[:-1], knots.kappa[1:]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            most = np.where(kappa_t > 0, np.minimum(1.0, knots.sigma[1:] / kappa_t), 1.0)
            if self.schedule == "fb":
                sig = np.where(kappa_t > 0, np.minimum(most, (kappa_s - kappa_t) / kappa_t), 0.0)
            elif self.schedule == "cap":
                sig = np.minimum(self.eta, most)
            else:
                sig = self.eta * most
        reveal = np.clip((kappa_s - (1.0 - sig) * kappa_t) / knots.sigma[:-1], 0.0, 1.0)
        reveal = np.where(knots.last, 1.0, reveal)
        return Plan(grid.starts, {"reveal": reveal, "remask": sig}, knots.index, reveal)

    def needs_x_1(self, row: Row, z: jax.Array, u: jax.Array, source: Any) -> jax.Array:
        return (z == source.mask_id) & (u[0] < row["reveal"])

    def transition(self, row: Row, z: jax.Array, x_1: jax.Array, u: jax.Array, y: jax.Array, source: Any) -> jax.Array:
        masked = jnp.full(z.shape, source.mask_id, z.dtype)
        hidden = z == source.mask_id
        return jnp.where(hidden, jnp.where(u[0] < row["reveal"], x_1, z), jnp.where(u[0] < row["remask"], masked, z))

    def transition_matrix(self, row: Row, source: Any) -> np.ndarray:
        to_x_1, stay = deltas(source.num_states)
        mask = np.eye(source.num_states)[source.mask_id]
        hidden = mask[:, None, None]
        reveal = row["reveal"] * to_x_1 + (1 - row["reveal"]) * stay
        hide = row["remask"] * mask + (1 - row["remask"]) * stay
        return hidden * reveal + (1 - hidden) * hide
