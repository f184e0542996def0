"""Correctors as matrices over the sequences, from their definitions (mathematics.md E.5). Pure numpy float64.

T[X, X'] at a fixed kappa, states in lexicographic order. Nothing here calls the code under test.
"""

import functools
import itertools

import numpy as np
from oracles import toys, transitions


@functools.cache
def tables(toy_name, source, kappa):
    """The states (n, L), C (S, V), post and xhat (n, L, V)."""
    toy = toys.TOYS[toy_name]
    p = toys.source_law(source, toy.vocab_size)
    conditional = toys.mixture(kappa, 1 - kappa, p, toy.vocab_size)
    states = toys.sequences(len(p), toy.length)
    return states, conditional, toys.posterior(toy, conditional), toys.leave_one_out(toy, conditional)


def product(laws, states, size):
    """T[X, .] of independent positions, laws (n, L, S)."""
    joint = np.ones((len(states), 1))
    for i in range(states.shape[1]):
        joint = (joint[:, :, None] * laws[:, i, None, :]).reshape(len(states), -1)
    return joint


def by_site(kind, toy_name, source, kappa):
    """(n, L, S): the law of position i after it alone is corrected."""
    _, conditional, post, xhat = tables(toy_name, source, kappa)
    return np.einsum("niv,sv->nis", post if kind == "resample" else xhat, conditional)


def one_site(kind, toy_name, source, kappa):
    """One position, chosen uniformly."""
    states, conditional, *_ = tables(toy_name, source, kappa)
    size, moved = len(conditional), by_site(kind, toy_name, source, kappa)
    stay = np.eye(size)[states]
    total = 0.0
    for i in range(states.shape[1]):
        only = np.where((np.arange(states.shape[1]) == i)[None, :, None], moved, stay)
        total = total + product(only, states, size)
    return total / states.shape[1]


def by_rate(kind, toy_name, source, kappa, rate):
    """Every position with probability `rate`, from one evaluation; gibbs with masks puts all masks first."""
    states, conditional, post, _ = tables(toy_name, source, kappa)
    size = len(conditional)
    stay = np.eye(size)[states]
    if kind != "gibbs" or source != "mask":
        return product((1 - rate) * stay + rate * by_site(kind, toy_name, source, kappa), states, size)
    total = 0.0
    for chosen in itertools.product((False, True), repeat=states.shape[1]):
        share = np.prod([rate if c else 1 - rate for c in chosen])
        masked = np.where(np.array(chosen), size - 1, states)
        seen = post[np.ravel_multi_index(masked.T, (size,) * states.shape[1])]
        drawn = kappa * np.pad(seen, ((0, 0), (0, 0), (0, 1))) + (1 - kappa) * np.eye(size)[size - 1]
        total = total + share * product(np.where(np.array(chosen)[:, None], drawn, stay), states, size)
    return total


def run(toy_name, source, steps, correct=None):
    """The law after exact steps on the linear schedule, `correct`(kappa) after each but the last."""
    law = transitions.initial(toy_name, source)
    for j in range(steps):
        law = transitions.advance(
            law, toy_name, source, j / steps, transitions.denoise(j / steps, 1.0 if j == steps - 1 else (j + 1) / steps)
        )
        if correct is not None and j < steps - 1:
            law = law @ correct((j + 1) / steps)
    return law
