import itertools
import threading
import time

import numpy as np
import pytest

from kvae import data
from kvae.core.errors import InputError
from kvae.data import ArrayExamples
from kvae.data.pipeline import evaluation_batches, example_indices, prefetch, train_batches

COUNT = 10
ARRAYS = ArrayExamples(
    {
        "image": np.random.default_rng(0).integers(0, 256, (COUNT, 2, 3, 3), dtype=np.uint8),
        "label": np.arange(COUNT, dtype=np.int32),
    }
)


class Streamed:
    """The same examples, read one at a time."""

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        return ARRAYS[index]


BOTH = pytest.mark.parametrize("examples", [ARRAYS, Streamed()], ids=["arrays", "streamed"])


def first(batches, count):
    return list(itertools.islice(batches, count))


def assert_same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name])


def test_each_epoch_is_permutation():
    order = np.concatenate([example_indices(7, step, 4, COUNT) for step in range(15)])
    epochs = order.reshape(6, COUNT)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(COUNT), (6, 1)))
    assert len({epoch.tobytes() for epoch in epochs}) == 6


def test_order_is_numpy_permutation_of_seed_and_epoch():
    expected = np.random.default_rng([7, 1]).permutation(COUNT)
    np.testing.assert_array_equal(example_indices(7, 1, COUNT, COUNT), expected)
    np.testing.assert_array_equal(example_indices(7, 2, 5, COUNT), expected[:5])


def test_order_depends_on_seed_not_on_batch_size():
    order = example_indices(0, 0, 24, COUNT)
    assert not np.array_equal(order, example_indices(1, 0, 24, COUNT))
    np.testing.assert_array_equal(order, np.concatenate([example_indices(0, step, 8, COUNT) for step in range(3)]))


def test_batch_may_exceed_data_set():
    counts = np.bincount(example_indices(0, 0, 25, COUNT), minlength=COUNT)
    assert counts.min() == 2
    assert counts.max() == 3


@BOTH
def test_train_batches_are_examples_at_indices(examples):
    batches = first(train_batches(examples, seed=3, batch_size=4, first_step=0), 6)
    for step, batch in enumerate(batches):
        indices = example_indices(3, step, 4, COUNT)
        assert_same([batch], [{name: array[indices] for name, array in ARRAYS.arrays.items()}])


@BOTH
def test_resumed_run_sees_same_batches(examples):
    uninterrupted = first(train_batches(examples, seed=3, batch_size=4, first_step=0), 8)
    assert_same(first(train_batches(examples, seed=3, batch_size=4, first_step=5), 3), uninterrupted[5:])


@BOTH
def test_slices_of_processes_form_global_batch(examples):
    joint = first(train_batches(examples, seed=3, batch_size=6, first_step=2), 4)
    parts = [
        first(train_batches(examples, seed=3, batch_size=6, first_step=2, process_index=i, process_count=3), 4)
        for i in range(3)
    ]
    joined = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]} for step in zip(*parts, strict=True)
    ]
    assert_same(joined, joint)


@BOTH
@pytest.mark.parametrize("process_count", [1, 2])
def test_evaluation_covers_each_example_once(examples, process_count):
    parts = [
        list(evaluation_batches(examples, batch_size=4, process_index=i, process_count=process_count))
        for i in range(process_count)
    ]
    labels, masks = [], []
    for step in zip(*parts, strict=True):
        for batch in step:
            assert batch["image"].shape == (4 // process_count, 2, 3, 3)
            assert batch["mask"].dtype == bool
        labels.append(np.concatenate([batch["label"] for batch in step]))
        masks.append(np.concatenate([batch["mask"] for batch in step]))
    labels, masks = np.concatenate(labels), np.concatenate(masks)
    assert len(labels) == 12
    np.testing.assert_array_equal(labels[masks], np.arange(COUNT))


def test_batch_must_divide_among_processes():
    with pytest.raises(InputError, match="batch_size is 6; it must be a multiple of the number of processes, 4"):
        train_batches(ARRAYS, seed=0, batch_size=6, first_step=0, process_count=4)
    with pytest.raises(InputError, match="batch_size is 0"):
        evaluation_batches(ARRAYS, batch_size=0)


def test_streaming_leaves_no_threads():
    before = set(threading.enumerate())
    batches = train_batches(Streamed(), seed=0, batch_size=4, first_step=0)
    first(batches, 2)
    assert set(threading.enumerate()) - before
    del batches
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before


def test_error_of_streamed_example_keeps_its_type():
    class Damaged(Streamed):
        def __getitem__(self, index):
            raise InputError("a.png: not a readable image")

    with pytest.raises(InputError, match=r"a\.png"):
        next(train_batches(Damaged(), seed=0, batch_size=4, first_step=0))


def test_prefetch_yields_all_items_in_order():
    with prefetch(range(100), 3) as items:
        assert list(items) == list(range(100))


def test_prefetch_computes_size_items_ahead():
    made = []

    def endless():
        for number in itertools.count():
            made.append(number)
            yield number

    def settles_at(count):
        deadline = time.monotonic() + 5
        while len(made) < count and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.05)
        return len(made) == count

    with prefetch(endless(), 3) as items:
        assert settles_at(3)
        assert next(items) == 0
        assert settles_at(4)


def test_prefetch_raises_error_after_earlier_items():
    def breaks():
        yield 1
        raise InputError("the disk is gone")

    with prefetch(breaks(), 2) as items:
        assert next(items) == 1
        with pytest.raises(InputError, match="the disk is gone"):
            next(items)


def is_prefetching():
    return any(thread.name == "kvae-prefetch" for thread in threading.enumerate())


@pytest.mark.parametrize("taken", [0, 2])
def test_prefetch_ends_its_thread(taken):
    with prefetch(itertools.count(), 2) as items:
        assert is_prefetching()
        first(items, taken)
    assert not is_prefetching()


def test_prefetch_ends_its_thread_after_exception():
    with pytest.raises(KeyError), prefetch(itertools.count(), 2):
        raise KeyError
    assert not is_prefetching()


@BOTH
def test_channel_statistics_match_numpy(examples):
    mean, std = data.channel_statistics(examples)
    pixels = ARRAYS.arrays["image"].astype(np.float64)
    np.testing.assert_allclose(mean, pixels.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(std, pixels.std((0, 1, 2)), atol=1e-6)
    assert all(type(value) is float for value in (*mean, *std))


def test_constant_channel_has_std_one():
    mean, std = data.channel_statistics(ArrayExamples({"image": np.full((3, 2, 2, 3), 9, np.uint8)}))
    assert mean == (9.0, 9.0, 9.0)
    assert std == (1.0, 1.0, 1.0)
