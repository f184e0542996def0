"""Laws of the samplers by enumeration: every token kernel T(x | z, x_1) from its definition, composed over the
sequences.

Pure numpy float64. A kernel is an array [z, x_1, x] of shape (S, S, S); where x_1 is a mask the row is never used,
since the posterior gives it no mass. Nothing here calls the code under test.
"""

import functools

import numpy as np
import scipy.linalg
from oracles import toys


def mixture_states(kappa, p):
    """C[x, x_1] over all S states as x_1."""
    return kappa * np.eye(len(p)) + (1 - kappa) * p[:, None]


def denoise(kappa_t, kappa_s):
    """x_1 with the probability that carries C_t to C_s for a frozen x_1."""

    def kernel(p):
        a = (kappa_s - kappa_t) / (1 - kappa_t)
        states = len(p)
        z, x_1, x = np.ogrid[:states, :states, :states]
        return a * (x == x_1) + (1 - a) * (x == z)

    return kernel


def noise(kappa_t, kappa_s):
    """Keep a token with probability kappa_s / kappa_t <= 1, else a fresh one."""

    def kernel(p):
        states = len(p)
        z, _, x = np.ogrid[:states, :states, :states]
        keep = kappa_s / kappa_t
        return (keep * (x == z) + (1 - keep) * p) * np.ones((1, states, 1))

    return kernel


def rate_step(h, rates, last, cut=False):
    """A first-order step of off-diagonal rates [z, x_1, x]: 1 - exp(-h total), or min(1, h rate) each if `cut`;
    x_1 at last."""

    def kernel(p):
        states = len(p)
        z, x_1, x = np.ogrid[:states, :states, :states]
        if last:
            return np.broadcast_to(1.0 * (x == x_1), (states,) * 3)
        u = np.where(x == z, 0.0, rates(p))
        total = u.sum(-1, keepdims=True)
        jump = np.minimum(1, h * total) if cut else 1 - np.exp(-h * total)
        share = np.divide(u, total, out=np.zeros_like(u), where=total > 0)
        return jump * share + (1 - jump) * (x == z)

    return kernel


def reference_rates(kappa, d_kappa, c):
    """The reference's velocity for a drawn x_1: one-way part plus c d kappa / (kappa sigma) C_t."""

    def rates(p):
        forward = d_kappa / (1 - kappa) * np.eye(len(p))
        extra = c * d_kappa / (kappa * (1 - kappa)) * mixture_states(kappa, p).T if c > 0 and kappa > 0 else 0.0
        return np.broadcast_to((forward + extra)[None], (len(p),) * 3).copy()

    return rates


def multiflow_rates(kappa, d_kappa, eta):
    """Detailed balance between x_1 and every other state of the support: x_1 -> y at eta, y -> x_1 at eta C(x_1) /
    C(y)."""

    def rates(p):
        states = len(p)
        c = mixture_states(kappa, p)
        u = np.zeros((states,) * 3)
        for x_1 in range(states):
            for y in range(states):
                if y != x_1 and p[y] > 0:
                    u[y, x_1, x_1] = d_kappa / (1 - kappa) + eta * c[x_1, x_1] / c[y, x_1]
                    u[x_1, x_1, y] = eta
        return u

    return rates


def ancestral(kappa_t, kappa_s):
    """Bayes: T(x | z, x_1) = q(z | x) C_s(x | x_1) / C_t(z | x_1) with the noising kernel q; rows with C_t = 0
    stay."""

    def kernel(p):
        states = len(p)
        a = kappa_t / kappa_s
        q = a * np.eye(states) + (1 - a) * p[None, :]  # [x, z]
        joint = q.T[:, None, :] * mixture_states(kappa_s, p).T[None]
        total = joint.sum(-1, keepdims=True)
        stay = np.broadcast_to(np.eye(states)[:, None, :], joint.shape)
        return np.where(total > 0, joint / np.where(total > 0, total, 1), stay)

    return kernel


def remask(kappa_t, kappa_s, sig):
    """ReMDM: revealed -> mask with probability sig, mask -> x_1 so that C_s is kept."""

    def kernel(p):
        states = len(p)
        z, x_1, x = np.ogrid[:states, :states, :states]
        mask = states - 1
        a = (kappa_s - (1 - sig) * kappa_t) / (1 - kappa_t)
        hidden = a * (x == x_1) + (1 - a) * (x == z)
        return np.where(z == mask, hidden, sig * (x == mask) + (1 - sig) * (x == z) + 0.0 * x_1)

    return kernel


@functools.lru_cache(maxsize=4096)
def posterior(toy_name, source, kappa):
    """(S**L, L, S) float64, padded with 0 for the mask state."""
    toy = toys.TOYS[toy_name]
    p = toys.source_law(source, toy.vocab_size)
    post = toys.posterior(toy, toys.mixture(kappa, 1 - kappa, p, toy.vocab_size))
    return np.pad(post, ((0, 0), (0, 0), (0, len(p) - toy.vocab_size)))


def initial(toy_name, source):
    toy = toys.TOYS[toy_name]
    p = toys.source_law(source, toy.vocab_size)
    law = p
    for _ in range(toy.length - 1):
        law = np.multiply.outer(law, p)
    return law.reshape(-1)


def advance(law, toy_name, source, kappa, kernel):
    """One step of the whole chain: x_1^i ~ posterior at kappa, then the token kernel at every position,
    independently."""
    toy = toys.TOYS[toy_name]
    p = toys.source_law(source, toy.vocab_size)
    states = toys.sequences(len(p), toy.length)
    token = kernel(p) if callable(kernel) else kernel
    post = posterior(toy_name, source, kappa)
    joint = np.ones((len(states), 1))
    for i in range(toy.length):
        to = np.einsum("xv,xvy->xy", post[:, i], token[states[:, i]])
        joint = (joint[:, :, None] * to[:, None, :]).reshape(len(states), -1)
    return law @ joint


def events(law, toy_name, source, kappa, clock):
    """The law after the chain has run for `clock` units of -log sigma: at every position x_1 ~ posterior, that of
    `kappa`, at rate 1."""
    toy = toys.TOYS[toy_name]
    p = toys.source_law(source, toy.vocab_size)
    states, post = toys.sequences(len(p), toy.length), posterior(toy_name, source, kappa)
    rates = -toy.length * np.eye(len(states))
    for index, place, token in np.ndindex(*post.shape):
        to = states[index].copy()
        to[place] = token
        rates[index, np.ravel_multi_index(to, (len(p),) * toy.length)] += post[index, place, token]
    return law @ scipy.linalg.expm(clock * rates)


def distance(law, toy_name, source):
    """Total variation to the data; states with a mask left count as lost."""
    toy = toys.TOYS[toy_name]
    target = np.zeros_like(law)
    states = len(toys.source_law(source, toy.vocab_size))
    target[np.ravel_multi_index(toy.data.T, (states,) * toy.length)] = toy.q
    return 0.5 * np.abs(law - target).sum()


def run(toy_name, source, stages):
    """Law at the end of `stages`, a sequence of (kappa of the model, kernel)."""
    law = initial(toy_name, source)
    for kappa, kernel in stages:
        law = advance(law, toy_name, source, kappa, kernel)
    return law
