"""Batches: a function of the step, the same for any number of processes, every block once in evaluation."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfm_jax.data import eval_batches, open_stream, prepare, train_batches
from dfm_jax.runtime.errors import UsageError

LENGTH = 8


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    """103 different blocks of 8 tokens and a tail of 5."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "a.txt").write_text("".join(f"{i:07d} " for i in range(103)) + "tail")
    return open_stream(prepare(str(folder / "a.txt"), "train", "bytes", folder, shard_bytes=300))


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def batches(stream, count, **kwargs):
    made = train_batches(stream, **{"length": LENGTH, "batch_size": 16, "seed": 42, **kwargs})
    return [batch.tokens for batch in take(made, count) if batch.given is None]


def block_numbers(rows):
    return [int(bytes(row.astype(np.uint8))[:7]) for row in np.concatenate(rows)]


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_any_number_of_processes_makes_the_same_global_batch(stream, processes):
    whole = batches(stream, 9)
    parts = [batches(stream, 9, process_index=i, process_count=processes) for i in range(processes)]
    for step, batch in enumerate(whole):
        assert batch.shape == (16, LENGTH)
        assert batch.dtype == np.int32
        np.testing.assert_array_equal(np.concatenate([part[step] for part in parts]), batch)


@given(st.integers(0, 20), st.sampled_from([1, 2, 8]))
def test_a_batch_is_a_function_of_its_step(stream, start, processes):
    whole = batches(stream, start + 2)[start:]
    for i in range(processes):
        part = batches(stream, 2, start_step=start, process_index=i, process_count=processes)
        rows = slice(16 // processes * i, 16 // processes * (i + 1))
        np.testing.assert_array_equal(np.stack(part), np.stack(whole)[:, rows])


def test_epochs_have_the_same_contents_in_other_orders(stream):
    numbers = block_numbers(batches(stream, 103 * 3, batch_size=1))
    epochs = [numbers[i * 103 : (i + 1) * 103] for i in range(3)]
    assert all(sorted(epoch) == list(range(103)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert all(epoch != sorted(epoch) for epoch in epochs)


def test_batches_go_on_over_the_end_of_an_epoch_and_are_never_short(stream):
    rows = batches(stream, 103, batch_size=16)
    assert all(len(batch) == 16 for batch in rows)
    np.testing.assert_array_equal(np.bincount(block_numbers(rows)), np.full(103, 16))


def test_seeds_give_other_orders(stream):
    orders = [tuple(block_numbers(batches(stream, 6, seed=seed))) for seed in (0, 1, 42, 43, 2**32 - 1)]
    assert len(set(orders)) == len(orders)
    # The next seed's first epoch is not this one's second.
    assert (
        block_numbers(batches(stream, 103, seed=1, batch_size=1))
        != block_numbers(batches(stream, 206, seed=0, batch_size=1))[103:]
    )


def test_the_order_is_the_one_of_earlier_versions(stream):
    """A run that is resumed with another release of grain must see the same data."""
    assert block_numbers(batches(stream, 1, seed=42)) == ORDER_42


ORDER_42 = [84, 47, 28, 24, 0, 70, 69, 56, 87, 60, 5, 66, 14, 22, 53, 98]


def test_a_far_step_is_as_near_as_the_first(stream):
    (batch,) = batches(stream, 1, start_step=10**12)
    assert batch.shape == (16, LENGTH)


def test_more_rows_in_a_batch_than_blocks(stream):
    (batch,) = batches(stream, 1, batch_size=256)
    assert set(block_numbers([batch])) == set(range(103))


@given(st.sampled_from([1, 2, 4, 8]), st.integers(1, 8), st.integers(0, 110))
def test_evaluation_reads_every_block_once(stream, processes, local, max_blocks):
    parts = [
        list(
            eval_batches(
                stream,
                length=LENGTH,
                batch_size=processes * local,
                process_index=i,
                process_count=processes,
                max_blocks=max_blocks,
            )
        )
        for i in range(processes)
    ]
    assert len({len(part) for part in parts}) == 1
    seen = []
    for step in zip(*parts, strict=True):
        for (tokens, kept, scored, counted), weights in step:
            assert kept is None and scored is None and counted is None
            assert tokens.shape == (local, LENGTH)
            assert (tokens.dtype, weights.dtype, weights.shape) == (np.int32, np.float32, (local,))
            assert not tokens[weights == 0].any()
            seen += block_numbers([tokens[weights == 1]]) if weights.any() else []
    assert seen == list(range(min(103, max_blocks or 103)))


def test_a_batch_that_the_processes_do_not_divide(stream):
    with pytest.raises(UsageError, match=r"batch_size = 16: expected a positive multiple of .* processes, 3"):
        train_batches(stream, length=LENGTH, batch_size=16, seed=0, process_count=3)
    with pytest.raises(UsageError, match="batch_size = 0"):
        eval_batches(stream, length=LENGTH, batch_size=0)
