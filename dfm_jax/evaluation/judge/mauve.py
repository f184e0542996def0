"""MAUVE: how close generated texts are to real ones, by clusters of their GPT-2 features (Pillutla et al. 2021, 2023).

Each text is one vector: the judge's features at its last token. The vectors of both sets are clustered together; P and
Q are the shares of the real and of the generated texts in each cluster. With R = w P + (1 - w) Q the curve
(exp(-c KL(Q || R)), exp(-c KL(P || R))) over w in (0, 1), c = 5, shows both kinds of error, and MAUVE is the area under
it, from 0 to 1. The choices are the published library's: vectors of length 1, principal components that hold 90 % of
the variance, one cluster for ten texts of the smaller set, the best of 5 runs of k-means of at most 500 rounds, and 25
weights.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

SCALING = 5.0
VARIANCE = 0.9
TEXTS_PER_CLUSTER = 10
ROUNDS, RUNS, WEIGHTS = 500, 5, 25
# (points (n, d) float32, number of clusters, seed) -> the cluster of each point, (n,) integers.
Cluster = Callable[[np.ndarray, int, int], np.ndarray]


class Mauve(NamedTuple):
    """value: MAUVE. clusters: how many. library: that made them. texts: generated and real ones."""

    value: float
    clusters: int
    library: str
    texts: tuple[int, int]


def _by_faiss(points: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    faiss: Any = importlib.import_module("faiss")
    means = faiss.Kmeans(points.shape[1], clusters, niter=ROUNDS, nredo=RUNS, seed=seed, min_points_per_centroid=1)
    means.train(points)
    return means.index.search(points, 1)[1].reshape(-1)


def _by_scikit_learn(points: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    cluster: Any = importlib.import_module("sklearn.cluster")
    return cluster.KMeans(clusters, n_init=RUNS, max_iter=ROUNDS, random_state=seed).fit_predict(points)


# Name for users -> (the module that has to be there, what clusters by it); the first that is installed is taken.
LIBRARIES: dict[str, tuple[str, Cluster]] = {
    "faiss": ("faiss", _by_faiss),
    "scikit-learn": ("sklearn", _by_scikit_learn),
}


def library() -> str | None:
    """The name of the installed library that clusters; None if there is none."""
    return next((name for name, (module, _) in LIBRARIES.items() if importlib.util.find_spec(module)), None)


def mauve(generated: np.ndarray, real: np.ndarray, *, seed: int = 0) -> Mauve:
    """MAUVE of two sets of vectors, (n, d) and (m, d) floats; the same for the same vectors, seed and library.

    Raises:
        ValueError: there is no library that clusters, or a set has fewer than two vectors.
    """
    name = library()
    if name is None:
        raise ValueError(f"expected {' or '.join(LIBRARIES)} to be installed (pip install dfm-jax[mauve])")
    fewest = min(len(generated), len(real))
    if fewest < 2:
        raise ValueError(f"expected two texts or more on each side, not {len(generated)} and {len(real)}")
    clusters = max(2, round(fewest / TEXTS_PER_CLUSTER))
    points = principal(np.concatenate([generated, real]))
    labels = np.asarray(LIBRARIES[name][1](points, clusters, seed), np.int64)
    q, p = (np.bincount(part, minlength=clusters) / len(part) for part in np.split(labels, [len(generated)]))
    return Mauve(area(p, q), clusters, name, (len(generated), len(real)))


def principal(vectors: np.ndarray) -> np.ndarray:
    """(n, d) vectors, made of length 1, in the fewest principal components that hold `VARIANCE`, (n, k) float32."""
    points = np.asarray(vectors, np.float64)
    points = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    points = points - points.mean(axis=0)
    _, sizes, directions = np.linalg.svd(points, full_matrices=False)
    shares = np.cumsum(sizes**2) / max(float((sizes**2).sum()), np.finfo(np.float64).tiny)
    count = min(int(np.searchsorted(shares, VARIANCE)) + 1, len(sizes))
    return np.ascontiguousarray(points @ directions[:count].T, np.float32)


def area(p: np.ndarray, q: np.ndarray) -> float:
    """The area under the divergence curve of two distributions over the same clusters."""
    weights = np.linspace(1e-6, 1 - 1e-6, WEIGHTS)
    curve = [(1.0, 0.0)]
    for weight in weights:
        r = weight * p + (1 - weight) * q
        curve.append((np.exp(-SCALING * _kl(q, r)), np.exp(-SCALING * _kl(p, r))))
    x, y = np.array([*curve, (0.0, 1.0)]).T
    over_x, over_y = np.lexsort((-y, x)), np.lexsort((-x, y))  # the curve falls, also where it is vertical
    return float((_trapezoids(x[over_x], y[over_x]) + _trapezoids(y[over_y], x[over_y])) / 2)


def _kl(p: np.ndarray, q: np.ndarray) -> float:
    """KL(p || q) in nats; q is above 0 where p is."""
    held = p > 0
    return float((p[held] * np.log(p[held] / q[held])).sum())


def _trapezoids(x: np.ndarray, y: np.ndarray) -> float:
    return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum())
