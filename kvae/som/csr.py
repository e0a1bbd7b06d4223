"""Sparse rows in CSR format, float [n, d]. None of these functions fills in zeros."""

from collections.abc import Callable

import numpy as np
import scipy.sparse
from scipy.sparse import csr_array
from sklearn.preprocessing import normalize


def scaled(vectors: csr_array, factors: np.ndarray, exponents: np.ndarray | int) -> csr_array:
    """Returns rows with each feature multiplied by its factor and each row divided by a power of two.

    Args:
      vectors: CSR, float [n, d]. Duplicate entries are summed.
      factors: float [d].
      exponents: exponents of the powers of two, int [n] or [].
    """
    vectors = csr_array(vectors)
    if not vectors.has_canonical_format:
        vectors = vectors.copy()
        vectors.sum_duplicates()
    powers = np.repeat(np.broadcast_to(exponents, vectors.shape[0]), np.diff(vectors.indptr))
    with np.errstate(over="ignore", under="ignore"):
        values = np.ldexp(vectors.data * factors.astype(vectors.dtype)[vectors.indices], -powers)
    return csr_array((values, vectors.indices, vectors.indptr), vectors.shape)


def row_maxima(vectors: csr_array) -> np.ndarray:
    """Returns the largest absolute value of each row, float [n]."""
    return abs(vectors).max(axis=1).toarray().ravel()


def directions(vectors: csr_array) -> csr_array:
    """Returns rows scaled to length 1, as `kvae.som.directions.directions` does; zero rows stay 0."""
    exponents = np.frexp(row_maxima(vectors))[1]
    return normalize(scaled(vectors, np.ones(vectors.shape[1]), exponents))


def distances(from_products: Callable, vectors: csr_array, columns: np.ndarray) -> np.ndarray:
    """Returns distances of rows from centres, float64 [n, K].

    Args:
      from_products: as in `kvae.som.metrics.Metric`.
      vectors: CSR, float64 [n, d].
      columns: the transposed centres, float64 [d, K] in C order.
    """
    squares = vectors.power(2).sum(axis=1)
    return from_products(vectors @ columns, squares[:, None], np.square(columns).sum(axis=0))


def principal_deviations(vectors: csr_array, shares: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean of the rows, float64 [d], and the standard deviations along the first components.

    The components come from the n x n matrix of products of the centred rows.

    Args:
      vectors: CSR, float [n, d].
      shares: weights of the rows, float [n], with a sum of 1.
      count: number of components.

    Returns:
      The mean, and deviations times components in ascending order, float64 [count, d] or fewer.
    """
    vectors, roots = vectors.astype(np.float64), np.sqrt(shares)
    mean = vectors.T @ shares
    with_mean = vectors @ mean
    products = (vectors @ vectors.T).toarray() - with_mean[:, None] - with_mean + mean @ mean
    combinations = roots[:, None] * np.linalg.eigh(roots[:, None] * products * roots)[1][:, -count:]
    return mean, (vectors.T @ combinations - np.outer(mean, combinations.sum(axis=0))).T


def stacked(parts: list) -> np.ndarray | csr_array:
    """Returns the rows of all parts in one array, sparse if a part is."""
    if any(scipy.sparse.issparse(part) for part in parts):
        return scipy.sparse.vstack([csr_array(part) for part in parts], format="csr")
    return np.concatenate(parts)
