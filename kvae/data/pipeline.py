"""Batches in a reproducible order: example j of step s depends only on (seed, s, j).

A run can therefore resume from its step number, and global batches do not depend on the number of processes.
"""

import contextlib
import functools
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

from kvae.core.errors import InputError, require_extra
from kvae.data.dataset import ArrayExamples, Example, Examples

Item = TypeVar("Item")

FOREVER_STEPS = 2**40
"""A number of steps that no run reaches."""


def example_indices(seed: int, step: int, batch_size: int, count: int) -> np.ndarray:
    """Returns the indices of the examples in the batch of a training step.

    Each epoch is a new permutation of all examples. Position g = step * batch_size + j is entry g % count of epoch
    g // count, so a batch may contain the end of one epoch and the beginning of the next.

    Args:
      seed: seed of the order; not negative.
      step: the step, from 0.
      batch_size: number of examples in the global batch.
      count: number of examples in the data set.

    Returns:
      int64 [batch_size].

    Example:
      >>> sorted(example_indices(seed=0, step=0, batch_size=4, count=4).tolist())
      [0, 1, 2, 3]
    """
    epochs, offsets = np.divmod(step * batch_size + np.arange(batch_size), count)
    indices = np.empty(batch_size, np.int64)
    for epoch in range(epochs[0], epochs[-1] + 1):
        in_epoch = epochs == epoch
        indices[in_epoch] = _permutation(seed, epoch, count)[offsets[in_epoch]]
    return indices


@functools.lru_cache(maxsize=32)  # one or two epochs of each replica; at most 160 MB for ImageNet
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count).astype(np.int32)


def train_batches(
    examples: Examples,
    *,
    seed: int,
    batch_size: int,
    first_step: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Example]:
    """Returns endless training batches, in the order of `example_indices`.

    Args:
      examples: the training set.
      seed: seed of the order.
      batch_size: number of examples in the global batch, over all processes.
      first_step: the step of the first batch.
      process_index: index of this process.
      process_count: number of processes that split a batch; each reads a contiguous slice of b = batch_size /
        process_count examples.

    Returns:
      An iterator over `{"image": uint8 [b, h, w, 3]}`, with `"label"` int32 [b] if the examples have labels.

    Raises:
      InputError: batch_size is not a multiple of process_count.

    Example:
      >>> import numpy as np
      >>> examples = ArrayExamples({"image": np.zeros((10, 8, 8, 3), np.uint8)})
      >>> next(train_batches(examples, seed=0, batch_size=4, first_step=0))["image"].shape
      (4, 8, 8, 3)
    """
    rows = _process_slice(batch_size, process_index, process_count)

    def indices(step: int) -> np.ndarray:
        return example_indices(seed, step, batch_size, len(examples))[rows]

    return _read_steps(examples, indices, range(first_step, FOREVER_STEPS))


def evaluation_batches(
    examples: Examples, *, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[Example]:
    """Returns batches of all examples, once and in order; the last batch is padded with copies of the last example.

    Args:
      examples: the validation set.
      batch_size: see `train_batches`.
      process_index: see `train_batches`.
      process_count: see `train_batches`.

    Returns:
      An iterator over batches like those of `train_batches`, with `"mask"` bool [b], False for padding.

    Raises:
      InputError: batch_size is not a multiple of process_count.
    """
    rows = _process_slice(batch_size, process_index, process_count)
    last = len(examples) - 1

    def positions(step: int) -> np.ndarray:
        return (step * batch_size + np.arange(batch_size))[rows]

    steps = range(-(-len(examples) // batch_size))
    batches = _read_steps(examples, lambda step: np.minimum(positions(step), last), steps)
    return ({**batch, "mask": positions(step) <= last} for step, batch in zip(steps, batches, strict=True))


def _process_slice(batch_size: int, process_index: int, process_count: int) -> slice:
    """Returns the slice of the global batch that this process reads."""
    size, rest = divmod(batch_size, process_count)
    if rest or not size:
        raise InputError(
            f"batch_size is {batch_size}; it must be a multiple of the number of processes, {process_count}"
        )
    return slice(process_index * size, (process_index + 1) * size)


def _read_steps(examples: Examples, indices: Callable[[int], np.ndarray], steps: range) -> Iterator[Example]:
    """Returns an iterator over the batches of `steps`: the stacked examples at `indices(step)`."""
    if isinstance(examples, ArrayExamples):
        return (examples[indices(step)] for step in steps)
    with require_extra("train"):
        import grain

    size = len(indices(steps.start))
    indices = functools.lru_cache(maxsize=8)(indices)  # called once for each example of a batch
    threads = os.cpu_count() or 1  # image decoders release the GIL, so each thread keeps a core busy
    return iter(
        grain.MapDataset.range(steps.start * size, steps.stop * size)
        .map(lambda position: examples[int(indices(position // size)[position % size])])
        .to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, 2 * size)))
        .batch(size)
    )


@contextlib.contextmanager
def prefetch(items: Iterable[Item], size: int) -> Iterator[Iterator[Item]]:
    """Computes items in a background thread, ahead of their use.

    An exception in the thread is raised when the next item is requested. When the `with` block ends, the thread
    finishes its current item and stops.

    Args:
      items: the iterable; only the background thread iterates over it.
      size: number of items to keep ready, at least 1.

    Example:
      >>> with prefetch(range(3), size=2) as items:
      ...     list(items)
      [0, 1, 2]
    """
    ready, free, stopping = queue.SimpleQueue(), threading.Semaphore(size), threading.Event()

    def produce() -> None:
        try:
            iterator = iter(items)
            while free.acquire() and not stopping.is_set():
                ready.put((next(iterator), None))
        except BaseException as error:  # including StopIteration, which marks the end
            ready.put((None, error))

    def consume() -> Iterator[Item]:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            free.release()
            yield item

    thread = threading.Thread(target=produce, name="kvae-prefetch", daemon=True)
    thread.start()
    try:
        yield consume()
    finally:
        stopping.set()
        free.release()
        thread.join()
