"""Tanh-sinh nodes on [0, 1], with 1 - t beside t: integrals of bounds to 1e-9 in some 60 evaluations."""

import numpy as np


def tanh_sinh(step: float = 1 / 8, span: float = 3.2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(t, r, weight) with sum(weight * f(t)) = int_0^1 f; both ends are approached to 1e-17."""
    u = np.arange(-span, span + step / 2, step)
    exponent = np.pi * np.sinh(u)
    t, r = 1 / (1 + np.exp(-exponent)), 1 / (1 + np.exp(exponent))
    return t, r, step * np.pi * np.cosh(u) * t * r
