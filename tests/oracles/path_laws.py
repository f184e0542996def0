"""Conditional laws of the other paths, from their definitions, and what the oracle tests do with any law.

Laws are pure numpy float64; a law is a function of (kappa, sigma) that gives C[x, v] = C(x | x_1 = v), (S, V).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from quadrature import tanh_sinh
from toys import TOYS, conditional_law, leave_one_out, marginal_law, posterior, sequences

from dfm_jax import flow
from dfm_jax.flow.samplers import grid as grids

Law = Callable[[float, float], np.ndarray]


def three_term(g: float, vocab_size: int) -> Law:
    """kappa (1 - rho) delta + rho / V + sigma (1 - rho) mask, rho = g kappa sigma; the mask is the last state."""

    def law(kappa: float, sigma: float) -> np.ndarray:
        rho = g * kappa * sigma
        c = np.zeros((vocab_size + 1, vocab_size))
        c[:vocab_size] = kappa * (1 - rho) * np.eye(vocab_size) + rho / vocab_size
        c[vocab_size] = sigma * (1 - rho)
        return c

    return law


def kinetic_optimal(p: np.ndarray) -> Law:
    """sigma(v) = sin^2(sigma W_v) / sin^2 W_v with W_v = acos sqrt p(v)."""

    def law(kappa: float, sigma: float) -> np.ndarray:
        w = np.arccos(np.sqrt(p))
        left = np.sin(sigma * w) ** 2 / np.sin(w) ** 2
        return np.diag(1 - left) + p[:, None] * left[None, :]

    return law


def genmd4(w: np.ndarray) -> Law:
    """sigma(v) = sigma^w_v, to the mask, which is the last state."""

    def law(kappa: float, sigma: float) -> np.ndarray:
        left = sigma**w
        return np.concatenate([np.diag(1 - left), left[None, :]])

    return law


def metric(apart: np.ndarray, beta: Callable[[float, float], float]) -> Law:
    """softmax_x(-beta d(x, v)) from distances (V, V)."""

    def law(kappa: float, sigma: float) -> np.ndarray:
        if sigma == 0:
            return np.eye(len(apart))
        weight = np.exp(-beta(kappa, sigma) * apart)
        return weight / weight.sum(axis=0)

    return law


def logits_of(toy_name: str, conditional: np.ndarray, kind: str, states: int) -> np.ndarray:
    """log of the exact posterior or leave-one-out law, (S**L, L, S); -inf on the states that are no data."""
    model = {"posterior": posterior, "leave_one_out": leave_one_out}[kind](TOYS[toy_name], conditional)
    with np.errstate(divide="ignore"):
        return np.log(np.pad(model, ((0, 0), (0, 0), (0, states - TOYS[toy_name].vocab_size))))


def expectation(
    toy_name: str, conditional: np.ndarray, losses: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
) -> float:
    """E of the sum over positions of losses(states' indices, x_t, x_1) -> (pairs, L), over all (x_t, x_1)."""
    toy = TOYS[toy_name]
    states = sequences(conditional.shape[0], toy.length)
    x, x_1 = (a.ravel() for a in np.indices((len(states), len(toy.data))))
    law = conditional_law(toy, conditional)[x, x_1] * toy.q[x_1]
    some = law > 0
    values = losses(x[some], states[x[some]], toy.data[x_1[some]]).sum(axis=-1)
    return float(law[some] @ values)


def slope(toy_name: str, law_at: Callable[[float], np.ndarray], t: float, h: float = 1e-4) -> np.ndarray:
    """dp_t/dt over the states' sequences, by fourth-order differences."""
    toy = TOYS[toy_name]
    p = {k: marginal_law(toy, law_at(t + k * h)) for k in (-2, -1, 1, 2)}
    return (8 * (p[1] - p[-1]) - (p[2] - p[-2])) / (12 * h)


def bound(
    toy_name: str, law: Law, path, source, loss: str, kind: str, *, dtype=np.float64, extra=None, step=1 / 8
) -> float:
    """sum_i int_0^1 E loss dt, nats per sequence. extra: (kappa, sigma) -> (S,), added to the exact logits."""
    objective = flow.get_objective(loss, path=path, source=source, parametrization=kind)
    charged = jax.jit(lambda logits, x_1, x_t, t: flow.loss_from_logits(objective, logits, x_1, x_t, t))
    total = 0.0
    for t, r, weight in zip(*tanh_sinh(step), strict=True):
        if dtype is np.float32 and min(t, r) < 1e-12:
            continue  # beyond any time that float32 training draws; the weight there is below 1e-10
        kappa, sigma = (float(x) for x in path.scheduler.float64(t, r)[:2])
        conditional = law(kappa, sigma)
        logits = logits_of(toy_name, conditional, kind, source.num_states)
        if extra is not None:
            logits = logits + extra(kappa, sigma)

        def losses(index, x_t, x_1, logits=logits, t=t, r=r):
            time = flow.Time(jnp.asarray(t, dtype), jnp.asarray(r, dtype))
            return np.asarray(charged(jnp.asarray(logits[index], dtype), x_1, x_t, time), np.float64)

        total += weight * expectation(toy_name, conditional, losses)
    return total


def law_after(toy_name: str, law: Law, path, source, step: str, steps: int, *, marginal: bool) -> np.ndarray:
    """The law of the sampler's sequences after `steps` equal steps, from the project's plan and probabilities.

    marginal: also checks that a step carries C_t(.|x_1) to C_s(.|x_1).
    """
    toy, states = TOYS[toy_name], source.num_states
    kernel, x = path.get_step(step), sequences(states, toy.length)
    plan = kernel.plan(path.scheduler, source, grids.uniform_grid(steps))
    now = np.prod(law(0.0, 1.0)[:, 0][x], axis=1)
    for i in range(steps):
        c = law(i / steps, (steps - i) / steps)
        post = np.exp(logits_of(toy_name, c, "posterior", states))
        token = kernel.transition_matrix({name: value[i] for name, value in plan.scalars.items()}, source)
        if marginal:
            held = np.einsum("zvx,zv->xv", token[:, : toy.vocab_size], c)
            np.testing.assert_allclose(held, law((i + 1) / steps, (steps - 1 - i) / steps), atol=1e-6)
        joint = np.ones((len(x), 1))
        for position in range(toy.length):
            to = np.einsum("xv,xvy->xy", post[:, position], token[x[:, position]])
            joint = (joint[:, :, None] * to[:, None, :]).reshape(len(x), -1)
        now = now @ joint
    return now


def distance(toy_name: str, law: np.ndarray, states: int) -> float:
    """Total variation to the data."""
    toy = TOYS[toy_name]
    target = np.zeros_like(law)
    target[np.ravel_multi_index(toy.data.T, (states,) * toy.length)] = toy.q
    return 0.5 * float(np.abs(law - target).sum())


def generates(toy_name: str, law: Law, path, source, velocity, t: float) -> float:
    """max |dp/dt - U p| at t for the exact posterior; asserts that no rate is negative."""
    from test_kolmogorov import generator

    toy, tokens = TOYS[toy_name], sequences(source.num_states, TOYS[toy_name].length)

    def at(t):
        value = path.scheduler.float64(t)
        return law(float(value.kappa), float(value.sigma))

    logits = logits_of(toy_name, at(t), "posterior", source.num_states)
    rates = np.asarray(velocity(jnp.asarray(logits), jnp.asarray(tokens), t, path, source))
    assert rates[~np.eye(source.num_states, dtype=bool)[tokens]].min() >= 0
    p = marginal_law(toy, at(t))
    moved = generator(np.where(p[:, None, None] > 0, rates, 0.0), source.num_states) @ p
    return float(np.abs(slope(toy_name, at, t) - moved).max())
