"""Batches in an order that is a function: example j of step s depends on (seed, s, j) only.

The data position is therefore the step itself, and one process or many see the same global batches.
"""

import contextlib
import functools
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

from kvae.core.errors import InputError
from kvae.data.dataset import ArrayExamples, Examples

Batch = dict[str, np.ndarray]
Item = TypeVar("Item")

FOREVER_STEPS = 2**40
"""More steps than any run takes, where a range must end."""


def example_indices(seed: int, step: int, batch_size: int, count: int) -> np.ndarray:
    """Which examples a training step sees: a new permutation of all of them per epoch, one epoch after the other.

    Position g = step * batch_size + j is place g % count of epoch g // count; a batch may straddle epochs.

    Args:
      seed: of the order; not negative.
      step: the step, from 0.
      batch_size: examples in the global batch.
      count: examples in the data set.

    Returns:
      int64 [batch_size].
    """
    epochs, places = np.divmod(step * batch_size + np.arange(batch_size), count)
    indices = np.empty(batch_size, np.int64)
    for epoch in range(epochs[0], epochs[-1] + 1):
        here = epochs == epoch
        indices[here] = _permutation(seed, epoch, count)[places[here]]
    return indices


@functools.lru_cache(maxsize=32)  # an epoch or two of every replica; int32 makes that 160 MB at most for ImageNet
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
) -> Iterator[Batch]:
    """Endless training batches from `first_step` on, in the order of `example_indices`.

    Args:
      examples: what to draw from.
      seed: of the order.
      batch_size: of the global batch, over all processes.
      first_step: the step whose batch comes first.
      process_index: of this process.
      process_count: how many processes share a batch; each gets a contiguous slice, b = batch_size / process_count.

    Returns:
      An iterator over `{"image": uint8 [b, h, w, 3]}`, with `"label"` int32 [b] where the examples have one.

    Raises:
      InputError: batch_size does not divide among the processes.
    """
    share = _share(batch_size, process_index, process_count)

    def indices(step):
        return example_indices(seed, step, batch_size, len(examples))[share]

    return _read(examples, indices, range(first_step, FOREVER_STEPS))


def evaluation_batches(
    examples: Examples, *, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """One pass over the examples in their order, in batches of one size.

    The last batch is filled up with the last example. Arguments and errors are those of `train_batches`.

    Returns:
      An iterator over batches as of `train_batches`, with `"mask"` bool [b]: False where an example only fills up.
    """
    share = _share(batch_size, process_index, process_count)
    last = len(examples) - 1

    def positions(step):
        return (step * batch_size + np.arange(batch_size))[share]

    steps = range(-(-len(examples) // batch_size))
    batches = _read(examples, lambda step: np.minimum(positions(step), last), steps)
    return ({**batch, "mask": positions(step) <= last} for step, batch in zip(steps, batches, strict=True))


def _share(batch_size: int, process_index: int, process_count: int) -> slice:
    """This process's slice of the global batch."""
    size, rest = divmod(batch_size, process_count)
    if rest or not size:
        raise InputError(
            f"batch_size is {batch_size}; it must be a multiple of the number of processes, {process_count}"
        )
    return slice(process_index * size, (process_index + 1) * size)


def _read(examples: Examples, indices: Callable[[int], np.ndarray], steps: range) -> Iterator[Batch]:
    """For each step the examples at `indices(step)`, stacked."""
    if isinstance(examples, ArrayExamples):
        return (examples[indices(step)] for step in steps)
    import grain

    size = len(indices(steps.start))
    indices = functools.lru_cache(maxsize=8)(indices)  # the examples of a batch ask one by one
    threads = os.cpu_count() or 1  # image decoders let go of the interpreter, so one thread keeps one core busy
    return iter(
        grain.MapDataset.range(steps.start * size, steps.stop * size)
        .map(lambda position: examples[int(indices(position // size)[position % size])])
        .to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, 2 * size)))
        .batch(size)
    )


@contextlib.contextmanager
def prefetch(items: Iterable[Item], size: int) -> Iterator[Iterator[Item]]:
    """Makes items in a background thread, ahead of their use.

    To be entered: `with prefetch(batches, 4) as batches: next(batches)`. An exception in the thread is raised where the
    next item is taken. Leaving the block ends the thread, after the item it is making.

    Args:
      items: what to iterate over, in the thread only.
      size: how many items to keep ready, at least 1.
    """
    ready, free, stopping = queue.SimpleQueue(), threading.Semaphore(size), threading.Event()

    def produce():
        try:
            iterator = iter(items)
            while free.acquire() and not stopping.is_set():
                ready.put((next(iterator), None))
        except BaseException as error:  # StopIteration too: the end is handed over like any other news
            ready.put((None, error))

    def consume():
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
