"""Toys A-E of mathematics.md F: data laws small enough that every conditional law is a table.

Pure numpy float64, built from the definitions only; nothing here calls the code under test. Sequences are in
lexicographic order, the first token slowest. States of a sequence (S = V, or V+1 with the mask last) likewise.
"""

import dataclasses
import itertools

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Toy:
    """A law `q` (V**L,) over the sequences `data` (V**L, L)."""

    name: str
    vocab_size: int
    length: int
    q: np.ndarray

    @property
    def data(self) -> np.ndarray:
        return sequences(self.vocab_size, self.length)

    @property
    def entropy(self) -> float:
        """H(q) in nats per sequence."""
        q = self.q[self.q > 0]
        return float(-(q * np.log(q)).sum())


def sequences(states: int, length: int) -> np.ndarray:
    """(states**length, length) int32, every sequence in lexicographic order."""
    return np.array(list(itertools.product(range(states), repeat=length)), dtype=np.int32)


def _toy(name: str, vocab_size: int, length: int, weight) -> Toy:
    w = np.array([weight(*x) for x in sequences(vocab_size, length).tolist()], dtype=np.float64)
    return Toy(name, vocab_size, length, w / w.sum())


A_WEIGHTS = [[6, 1, 2], [1, 5, 3], [2, 4, 8]]
TOYS = {
    "A": _toy("A", 3, 2, lambda a, b: A_WEIGHTS[a][b]),
    "B": _toy("B", 4, 3, lambda a, b, c: (7 * a + 5 * b + 3 * c + 2 * a * b + a * b * c) % 11),
    "C": _toy("C", 5, 1, lambda a: 2 ** (4 - a)),
    "D": _toy("D", 3, 3, lambda a, b, c: 20 if a == b == c else 1 + (a + 2 * b + 3 * c) % 3),
    "E": _toy("E", 6, 2, lambda i, j: (i * j + 3 * i + j) % 7 + 3 * (i == j) + 0.5),
}
ENTROPIES = {
    "A": 1.995520848309,
    "B": 3.913572075082,
    "C": 1.242747730457,
    "D": 2.710583197192,
    "E": 3.416553112704,
}


def source_law(name: str, vocab_size: int) -> np.ndarray:
    """p(x) over the S states: 'mask' (S = V+1, all mass on V), 'uniform', or 'ramp' (p ~ 1..V)."""
    if name == "mask":
        return np.eye(vocab_size + 1)[vocab_size]
    weights = np.ones(vocab_size) if name == "uniform" else np.arange(1.0, vocab_size + 1)
    return weights / weights.sum()


def mixture(kappa: float, sigma: float, p: np.ndarray, vocab_size: int) -> np.ndarray:
    """C[x, v] = C_t(x | x_1 = v) = kappa delta_v(x) + sigma p(x), shape (S, V)."""
    return kappa * np.eye(len(p), vocab_size) + sigma * p[:, None]


def conditional_law(toy: Toy, conditional: np.ndarray) -> np.ndarray:
    """p_t(X | x_1) = prod_i C(X_i | x_1^i), shape (S**L states, V**L data)."""
    x, x_1 = sequences(conditional.shape[0], toy.length), toy.data
    return np.prod(conditional[x[:, None, :], x_1[None, :, :]], axis=-1)


def marginal_law(toy: Toy, conditional: np.ndarray) -> np.ndarray:
    """p_t(X) = sum_{x_1} q(x_1) p_t(X | x_1), shape (S**L,)."""
    return conditional_law(toy, conditional) @ toy.q


def posterior(toy: Toy, conditional: np.ndarray) -> np.ndarray:
    """post[X, i, v] = p(x_1^i = v | X), shape (S**L, L, V); uniform over V where p_t(X) = 0."""
    joint = conditional_law(toy, conditional) * toy.q
    return _by_token(toy, np.repeat(joint[:, None, :], toy.length, axis=1))


def leave_one_out(toy: Toy, conditional: np.ndarray) -> np.ndarray:
    """xhat[X, i, v] = p(x_1^i = v | X without X_i), shape (S**L, L, V); uniform over V where undefined."""
    x, x_1 = sequences(conditional.shape[0], toy.length), toy.data
    factors = conditional[x[:, None, :], x_1[None, :, :]]
    others = np.stack([np.delete(factors, i, axis=-1).prod(axis=-1) for i in range(toy.length)], axis=1)
    return _by_token(toy, others * toy.q)


def _by_token(toy: Toy, joint: np.ndarray) -> np.ndarray:
    """Sums joint[X, i, x_1] over the sequences x_1 with x_1^i = v, then normalises over v."""
    match = (toy.data.T[:, :, None] == np.arange(toy.vocab_size)).astype(np.float64)
    weights = np.einsum("xid,idv->xiv", joint, match)
    total = weights.sum(axis=-1, keepdims=True)
    return np.where(total > 0, weights / np.where(total > 0, total, 1.0), 1.0 / toy.vocab_size)
