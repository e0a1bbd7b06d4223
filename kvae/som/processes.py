"""Maps of rows that are spread over the processes of `jax.distributed`: each process holds its own share.

All functions are collective: every process must call them, in the same order. With one process they do not communicate.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
import scipy.sparse

from kvae.core.errors import InputError

Result = TypeVar("Result")


def gather(array: np.ndarray) -> np.ndarray:
    """Returns the arrays of all processes, [processes, ...]. They must have the same shape and dtype."""
    if jax.process_count() == 1:
        return array[None]
    from jax.experimental import multihost_utils

    # As bytes, because JAX would round float64 to float32.
    raw = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
    parts = np.ascontiguousarray(multihost_utils.process_allgather(raw))
    return parts.view(array.dtype).reshape(len(parts), *array.shape)


def add(sums: Result) -> Result:
    """Returns a tree of arrays, each summed over all processes. The result is the same in each of them."""
    if jax.process_count() == 1:
        return sums
    return jax.tree.map(lambda leaf: gather(np.asarray(leaf)).sum(axis=0), sums)


def agree(compute: Callable[[], Result]) -> Result:
    """Returns `compute()`. If it fails in one process, it raises in all of them, so that none waits forever.

    Raises:
      InputError: another process failed.
    """
    if jax.process_count() == 1:
        return compute()
    result, failure = None, None
    try:
        result = compute()
    except Exception as error:
        failure = error
    failed = np.flatnonzero(gather(np.array(failure is not None)))
    if failure is not None:
        raise failure
    if len(failed):
        raise InputError(f"process {failed[0]} cannot continue; its own error says why")
    return result


def shared_seed(seed: int | np.random.RandomState | None) -> int | np.random.RandomState | None:
    """Returns `seed`, or the same random seed in all processes if it is None and there are several."""
    if seed is not None or jax.process_count() == 1:
        return seed
    return int(gather(np.array(np.random.randint(2**31 - 1)))[0])


def join_samples(vectors: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the samples of all processes, one after the other: float [n, d] and [n] to [N, d] and [N].

    Raises:
      InputError: some processes have sparse rows and others dense ones, or rows of different lengths or dtypes.
    """
    if jax.process_count() == 1:
        return vectors, weights
    is_sparse = scipy.sparse.issparse(vectors)
    kinds = gather(np.array([vectors.shape[1], vectors.dtype.itemsize, is_sparse]))
    for name, column in (("features", 0), ("bytes per value", 1), ("sparse rows (0 or 1)", 2)):
        if len({*kinds[:, column]}) > 1:
            raise InputError(f"X has {kinds[:, column].tolist()} {name} in the processes; it must be the same in all")
    if not is_sparse:
        return _join(vectors), _join(weights)
    ends = np.cumsum(_join(np.diff(vectors.indptr)), dtype=np.int64)
    parts = _join(vectors.data), _join(vectors.indices.astype(np.int64)), np.concatenate([[0], ends])
    return scipy.sparse.csr_array(parts, shape=(len(ends), vectors.shape[1])), _join(weights)


def _join(array: np.ndarray) -> np.ndarray:
    """Returns the arrays of all processes, one after the other along the first axis, whose length may differ."""
    lengths = gather(np.array(len(array)))
    padding = [(0, lengths.max() - len(array))] + [(0, 0)] * (array.ndim - 1)
    return gather(np.pad(array, padding))[np.arange(lengths.max()) < lengths[:, None]]


def refuse_several(estimator: str) -> None:
    """Raises InputError for an estimator whose statistics are of one process only."""
    if jax.process_count() > 1:
        raise InputError(f"{estimator} learns from the rows of one process; fit it where jax.distributed is not used")
