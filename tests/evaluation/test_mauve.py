"""MAUVE: its curve and clusters on laws whose value is known, the judge's features, and what the report says."""

import sys
import types

import numpy as np
import pytest
from flax import nnx

from dfm_jax.evaluation.judge import mauve
from dfm_jax.evaluation.judge.gpt2 import GPT2, GPT2Config
from dfm_jax.evaluation.judge.perplexity import Judge
from dfm_jax.evaluation.report.markdown import Report, render_markdown


class KMeans:
    """Lloyd's algorithm, with the arguments of scikit-learn that are used."""

    def __init__(self, n_clusters: int, *, n_init: int, max_iter: int, random_state: int):
        self.clusters, self.runs, self.rounds, self.seed = n_clusters, n_init, max_iter, random_state

    def fit_predict(self, points: np.ndarray) -> np.ndarray:
        draw, best = np.random.default_rng(self.seed), (np.inf, np.zeros(len(points), int))
        for _ in range(self.runs):
            centers = points[draw.choice(len(points), self.clusters, replace=False)]
            for _ in range(min(self.rounds, 20)):
                distances = ((points[:, None] - centers[None]) ** 2).sum(-1)
                labels = distances.argmin(1)
                centers = np.stack([
                    points[labels == k].mean(0) if (labels == k).any() else centers[k] for k in range(self.clusters)
                ])  # fmt: skip
            best = min(best, (distances.min(1).sum(), labels), key=lambda pair: pair[0])
        return best[1]


@pytest.fixture
def clustering(monkeypatch):
    """A clustering library: the installed one, else a small one in its place."""
    if mauve.library() is None:
        module = types.ModuleType("sklearn.cluster")
        module.KMeans = KMeans
        monkeypatch.setitem(sys.modules, "sklearn.cluster", module)
        monkeypatch.setattr(mauve, "library", lambda: "scikit-learn")


def test_the_area_of_known_laws():
    p = np.array([0.5, 0.25, 0.25, 0.0])
    assert mauve.area(p, p) == pytest.approx(1.0)
    # Disjoint laws: KL(Q || R) = -log(1 - w) and KL(P || R) = -log w, so the curve is ((1 - w)**5, w**5).
    disjoint = mauve.area(np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    w = np.linspace(0, 1, 100_001)
    exact = np.trapezoid(w**5, -((1 - w) ** 5))
    assert disjoint == pytest.approx(exact, abs=2e-4) and disjoint < 0.01
    q = np.array([0.4, 0.2, 0.2, 0.2])
    between = mauve.area(p, q)
    assert disjoint < between < 1 and between == pytest.approx(mauve.area(q, p))
    fine = [
        (np.exp(-5 * mauve._kl(q, r)), np.exp(-5 * mauve._kl(p, r))) for r in (v * p + (1 - v) * q for v in w[1:-1])
    ]
    x, y = np.array([(1.0, 0.0), *fine, (0.0, 1.0)]).T
    assert between == pytest.approx(np.trapezoid(y[::-1], x[::-1]), abs=2e-3)


def test_principal_components_hold_the_variance_of_unit_vectors():
    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(200, 8)) * np.array([10, 5, 1, 0.1, 0.1, 0.1, 0.1, 0.1]) * draw.uniform(1, 9, (200, 1))
    found = mauve.principal(vectors)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    whole = ((unit - unit.mean(0)) ** 2).sum()
    assert found.shape[1] < 8 and (found.astype(np.float64) ** 2).sum() >= 0.9 * whole
    assert (found[:, :-1].astype(np.float64) ** 2).sum() < 0.9 * whole
    np.testing.assert_allclose(mauve.principal(np.ones((3, 4))), 0.0, atol=1e-12)  # all the same


def test_sets_of_one_law_are_close_and_others_far(clustering):
    draw = np.random.default_rng(1)
    centers = draw.normal(size=(6, 16))

    def texts(which, count=120):
        return centers[draw.choice(which, count)] + 0.05 * draw.normal(size=(count, 16))

    same = mauve.mauve(texts([0, 1, 2, 3]), texts([0, 1, 2, 3]))
    half = mauve.mauve(texts([0, 1, 4, 5]), texts([0, 1, 2, 3]))
    none = mauve.mauve(texts([4, 5]), texts([0, 1]))
    assert same.value > 0.8 > half.value > none.value and none.value < 0.02
    assert same.clusters == 12 and same.texts == (120, 120)
    with pytest.raises(ValueError, match="expected two texts or more on each side, not 1 and 120"):
        mauve.mauve(texts([0], 1), texts([0]))


def test_without_a_library_the_way_out_is_named(monkeypatch):
    monkeypatch.setattr(mauve, "library", lambda: None)
    with pytest.raises(
        ValueError, match=r"expected faiss or scikit-learn to be installed \(pip install dfm-jax\[mauve\]"
    ):
        mauve.mauve(np.ones((3, 2)), np.ones((3, 2)))


class Letters:
    """Token i is the i-th letter from a on."""

    name, eos_id, vocab_size = "letters", 26, 27

    def encode_batch(self, texts):
        return [np.array([ord(c) - ord("a") for c in text], np.uint16) for text in texts]

    def decode(self, ids):
        return "".join(chr(ord("a") + int(i)) for i in ids)


@pytest.mark.slow
def test_the_features_are_those_of_the_last_token():
    model = GPT2(GPT2Config(vocab_size=27, n_positions=96, n_embd=8, n_layer=1, n_head=1), rngs=nnx.Rngs(0))
    samples = np.random.default_rng(0).integers(0, 26, (5, 70))
    judge = Judge(model, Letters(), batch_size=2)
    expected = np.asarray(model.features(samples.astype(np.int32)))[:, -1]
    np.testing.assert_allclose(judge.features(samples, Letters()), expected, atol=1e-5)
    other = Letters()
    other.name = "the same letters under another name"  # decoded and encoded again
    np.testing.assert_allclose(judge.features(samples, other), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        (
            {"value": 0.8125, "clusters": 12, "library": "faiss", "texts": [120, 100]},
            "MAUVE: 0.812, from 0 to 1, of 120",
        ),
        ({"value": None, "reason": "no such judge"}, "MAUVE: none; no such judge."),
        (None, None),
    ],
)
def test_the_report_has_a_line(entry, line):
    texts = {"ppl_mean_of_exp": None, "ppl_mean_of_exp_stderr": None, "ppl_token_mean": None, "entropy_bits": 1.0}
    texts |= {"entropy_nats": 1.0, "distinct": {"1": 0.5}, "repetition": 0.0, "samples": 3}
    page = render_markdown(Report("run", 1, {}, {**texts, "judge": "gpt2", "mauve": entry}))
    assert ("MAUVE" in page) == (line is not None) and (line is None or line in page)
    assert "MAUVE" not in render_markdown(Report("run", 1, {}, {**texts, "judge": None, "mauve": entry}))
