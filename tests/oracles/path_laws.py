"""Conditional laws of the other paths, from their definitions, and what the oracle tests do with any law.

Pure numpy float64; a law is a function of (kappa, sigma) that gives C[x, v] = C(x | x_1 = v), (S, V).
"""

from collections.abc import Callable

import numpy as np
from toys import TOYS, conditional_law, leave_one_out, marginal_law, posterior, sequences

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
