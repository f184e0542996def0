"""Mixtures: blocks of several corpora in exact proportion, a function of the step alone."""

import itertools
import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfm_jax.data import Mixture, open_stream, prepare, train_batches
from dfm_jax.data.views import weights
from dfm_jax.data.views.proportions import Order, Proportions, shares_of
from dfm_jax.runtime.errors import UsageError

LENGTH = 8


def fractions(*texts):
    return tuple(map(Fraction, texts))


def deviation(places, shares):
    """The largest distance of a corpus's blocks from its share, after any number of blocks."""
    given_ = np.cumsum(np.eye(len(shares))[[corpus for corpus, _ in places]], axis=0)
    n = np.arange(1, len(places) + 1)[:, None]
    return np.abs(given_ - n * np.array([float(share) for share in shares])).max()


@pytest.mark.parametrize("seed", [0, 42])
@pytest.mark.parametrize(
    "written",
    [("0.7", "0.3"), ("1", "1", "1"), ("3", "0", "5"), ("0.94", "0.01", "0.02", "0.03"), ("123456789", "987654321"),
     ("0.12345", "0.23456", "0.31234", "0.32965"), ("1", "2", "3", "4", "5", "6", "7", "8")],
)  # fmt: skip
def test_every_corpus_has_its_share_of_10000_blocks_to_within_one(written, seed):
    given_ = fractions(*written)
    order = Proportions(given_, seed)
    places = [order.place(i) for i in range(10_000)]
    assert deviation(places, [weight / sum(given_) for weight in given_]) <= 1
    for corpus in range(len(written)):  # each corpus's blocks in its own order, none left out
        numbers = [number for k, number in places if k == corpus]
        assert numbers == list(range(len(numbers)))
    for position in (0, 1, 9, 5000, 10_000):
        counted = np.bincount([k for k, _ in places[:position]], minlength=len(written)).tolist()
        assert order.counts(position) == counted


@settings(max_examples=50)
@given(st.lists(st.integers(0, 300), min_size=2, max_size=9).filter(any), st.integers(0, 3))
def test_any_weights_keep_to_within_one_block(numbers, seed):
    given_ = [Fraction(number) for number in numbers]
    order = Proportions(given_, seed)
    assert sum(order.shares) == len(order.corpus)
    assert deviation([order.place(i) for i in range(2 * len(order.corpus))], [g / sum(given_) for g in given_]) <= 1


def test_the_seed_gives_another_order():
    orders = [Proportions(fractions("0.5", "0.3", "0.2"), seed).corpus.tolist() for seed in range(8)]
    assert len({tuple(order) for order in orders}) > 1


def test_weights_that_are_too_fine_are_rounded_to_the_longest_period():
    shares = shares_of(fractions("123456789", "987654321"))
    assert sum(shares) == 100_000 and shares[0] == round(100_000 * 123456789 / 1111111110)


def test_weights_that_change_leave_what_came_before_and_skip_no_block():
    early, late = fractions("0.7", "0.3"), fractions("0.2", "0.8")
    order, unchanged = Order([(0, early), (1003, late)], 5), Order([(0, early)], 5)
    places = [order.place(i) for i in range(3000)]
    assert places[:1003] == [unchanged.place(i) for i in range(1003)]
    assert deviation(places[1003:], late) <= 1
    for corpus in range(2):
        numbers = [number for k, number in places if k == corpus]
        assert numbers == list(range(len(numbers)))
    for position in (0, 1, 1002, 1003, 1004, 3000):
        assert order.counts(position) == np.bincount([k for k, _ in places[:position]], minlength=2).tolist()


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """Blocks of text that begin with a or b, and records."""
    folder = tmp_path_factory.mktemp("corpora")
    streams = []
    for letter, count in (("a", 40), ("b", 23)):
        (folder / f"{letter}.txt").write_text("".join(f"{letter}{i:06d} " for i in range(count)))
        streams.append(open_stream(prepare(str(folder / f"{letter}.txt"), "train", "bytes", folder, shard_bytes=100)))
    rows = [{"q": f"c{i:02d}", "a": "="} for i in range(30)]
    (folder / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    streams.append(open_stream(prepare(f"{folder}/c.jsonl:prompt=q:response=a", "train", "bytes", folder)))
    return Mixture(("a", "b", "c"), tuple(streams), fractions("5", "3", "2"))


def batches(mixture, count, **options):
    made = train_batches(mixture, **{"length": LENGTH, "batch_size": 8, "seed": 42, **options})
    return list(itertools.islice(made, count))


def test_a_batch_of_a_mixture_is_a_function_of_its_step_on_any_number_of_processes(mixture):
    whole = batches(mixture, 30)
    halves = [batches(mixture, 30, process_index=i, process_count=2) for i in range(2)]
    late = batches(mixture, 5, start_step=25)
    for step, batch in enumerate(whole):
        parts = [half[step] for half in halves]
        for name in ("tokens", "given"):
            ours = getattr(batch, name)
            np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in parts]), ours)
            if step >= 25:
                np.testing.assert_array_equal(getattr(late[step - 25], name), ours)


def test_rows_of_a_mixture_are_those_of_its_corpora(mixture):
    rows = np.concatenate([batch.tokens for batch in batches(mixture, 50)])
    given_ = np.concatenate([batch.given for batch in batches(mixture, 50)])
    letters = np.array([chr(row[0]) for row in rows])
    assert [(letters == letter).sum() for letter in "abc"] == [200, 120, 80]
    assert (given_.sum(1) == np.where(letters == "c", 3, 0)).all()
    # Within an epoch of its own a corpus gives every block once.
    assert len({bytes(row.astype(np.uint8)) for row in rows[letters == "a"][:40]}) == 40
    assert len({bytes(row.astype(np.uint8)) for row in rows[letters == "b"][:23]}) == 23
    epochs = mixture.epochs(50, length=LENGTH, batch_size=8, seed=42)
    assert epochs == pytest.approx([200 / 40, 120 / 23, 80 / 30])


def test_how_a_mixture_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parts = weights.mixture("a.jsonl=0.7,fineweb-edu=3e-1,b.jsonl:prompt=q:response=a=1", "data.train")
    assert parts == (
        ("a.jsonl", Fraction("0.7")),
        ("fineweb-edu", Fraction("0.3")),
        ("b.jsonl:prompt=q:response=a", Fraction(1)),
    )
    assert weights.mixture("a.jsonl", "") == weights.mixture("a.jsonl:column=2", "") == ()
    assert weights.mixture("a,b.txt", "") == weights.mixture("a=0.5", "") == ()
    (tmp_path / "a=1,b=2").write_text("x")
    assert weights.mixture("a=1,b=2", "") == ()
    (tmp_path / "a.txt").write_text("x")
    assert weights.mixture("a.txt = 1", "") == (("a.txt", Fraction(1)),)
    assert weights.mixture("a.txt = 1, b.txt= .5", "") == (("a.txt", Fraction(1)), ("b.txt", Fraction(1, 2)))
    for spec, error in {
        "a.txt,b.txt": "a.txt has no weight: expected CORPUS=WEIGHT for each",
        "a.txt=70%,b.txt=30%": "the weight of a.txt = 70%: expected a number of 0 or more",
        "a.txt=-1": "the weight of a.txt = -1: expected a number of 0 or more",
        "a.txt=0": "all weights are 0: expected at least one above 0",
        "pydocs,a.txt=1": "pydocs has no weight",
    }.items():
        with pytest.raises(UsageError) as raised:
            weights.mixture(spec, "F")
        assert str(raised.value).startswith(f"F = {spec}: {error}")


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ("a.txt=0.7,b.txt=-0.3", "the weight of b.txt = -0.3: expected a number of 0 or more"),
        ("a.txt=0,b.txt=0", "all weights are 0: expected at least one above 0"),
        ("a.txt=0.7,b.txt", "b.txt has no weight: expected CORPUS=WEIGHT for each"),
        ("a.txt=0.7,", "nothing has no weight"),
        ("a.txt=0.7,a.txt=1", "a.txt is there twice"),
        ("a.txt=nan,b.txt=1", "the weight of a.txt = nan"),
        ("a.txt=1e400,b.txt=1", "the weight of a.txt = 1e400"),
        ("a.txt=1e-9,b.txt=1", "a weight of 1e-09 of all: expected 0, or at least 1 / 100,000 of all"),
        ("a.txt=1,b.txt:column=2", "b.txt:column=2 has no weight"),
    ],
)
def test_weights_that_mean_nothing(spec, error):
    with pytest.raises(UsageError) as raised:
        weights.mixture(spec, "config.data.train")
    assert str(raised.value).startswith(f"config.data.train = {spec}: {error}")


@pytest.mark.parametrize(
    ("texts", "error"),
    [
        (("10:1/2/3",), "10:1/2/3: 3 weights: expected 2"),
        (("10:1/-2",), "a weight = -2: expected a number of 0 or more"),
        (("10:1/x",), "a weight = x: expected a number of 0 or more"),
        (("10:0/0",), "all weights are 0"),
        (("10:1/2", "10:2/1"), "10:2/1: expected steps above 0 that increase"),
        (("0:1/2",), "expected steps above 0"),
    ],
)
def test_changes_of_weights_that_mean_nothing(texts, error):
    with pytest.raises(UsageError, match=error):
        weights.changes(texts, 2, "config.data.reweight")
    with pytest.raises(UsageError, match=r"expected none: data.train is one corpus"):
        weights.changes(("10:1",), 0, "config.data.reweight")
