"""Losses and metrics of URL-SOM (N. Kermiche, "Self-Organizing Representation Learning", 2021)."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kvae.models.model import Metric


def neural_selectivity(table: jax.Array, held_out: jax.Array | None = None) -> jax.Array:
    """Returns the share of samples that have the label of their winning neuron (Section V.C).

    The label of a neuron is the most frequent label among the samples that it wins; a tie gives the lowest label.

    Example:
      >>> import jax.numpy as jnp
      >>> float(neural_selectivity(jnp.array([[3, 1], [0, 4]])))
      0.875

    Args:
      table: [n, classes], the number of samples of each class that each neuron wins.
      held_out: the table of other samples, [n, classes]. If given, the labels of the neurons come from `table` and the
        samples from `held_out`. A neuron that wins nothing in `table` has no label, and its samples count as errors. By
        default the samples of `table` are measured, as in the paper.

    Returns:
      float32 [], from 0 to 1; NaN if there are no samples.
    """
    samples = table if held_out is None else held_out
    correct = jnp.take_along_axis(samples, jnp.argmax(table, axis=-1, keepdims=True), axis=-1)[:, 0]
    return jnp.sum(jnp.where(jnp.any(table > 0, axis=-1), correct, 0)) / jnp.sum(samples)


def dead_neurons(counts: np.ndarray) -> int:
    """Returns the number of neurons that win no sample; `counts` [n] is the number of samples that each wins."""
    return int(np.sum(np.asarray(counts) == 0))


def directions(probabilities: jax.Array) -> jax.Array:
    """Projects p to the unit sphere, P = p / |p| (Eq. 2): float [..., n] -> float32 [..., n]."""
    probabilities = probabilities.astype(jnp.float32)
    return probabilities / jnp.linalg.norm(probabilities, axis=-1, keepdims=True)


def _mean_direction(probabilities: jax.Array) -> jax.Array:
    """Returns the mean of P over all leading axes, [n]."""
    return jnp.mean(directions(probabilities), axis=range(probabilities.ndim - 1))


def winner_take_all_loss(probabilities: jax.Array) -> jax.Array:
    """Returns mean_i P_i . U, with P = p / |p| and U = (1, ..., 1) / sqrt(n) (Eq. 4).

    The loss is 1 if each output is uniform, and 1/sqrt(n), its minimum, if each is one-hot.

    Args:
      probabilities: p, float [..., n]; its rows sum to 1.

    Returns:
      float32 [].
    """
    return jnp.sum(_mean_direction(probabilities)) / math.sqrt(probabilities.shape[-1])


def collapse_loss(probabilities: jax.Array) -> jax.Array:
    """Returns 1 - A . U, with A = a / |a| and a = mean_i P_i (Eq. 5).

    The loss is 0 if all components of A are equal, and 1 - 1/sqrt(n) if a single neuron has all the probability.

    Args:
      probabilities: p, float [..., n]; its rows sum to 1.

    Returns:
      float32 [].
    """
    return 1 - jnp.sum(directions(_mean_direction(probabilities))) / math.sqrt(probabilities.shape[-1])


def similarity_loss(probabilities: jax.Array, others: jax.Array) -> jax.Array:
    """Returns 1 - mean_i P+_i . P-_i (Eq. 6), which is 0 if both views of each image have the same output.

    Args:
      probabilities, others: p+ and p- of two views of the same images, float [..., n].

    Returns:
      float32 [].
    """
    return 1 - jnp.mean(jnp.sum(directions(probabilities) * directions(others), axis=-1))


def loss_terms(probabilities: jax.Array, others: jax.Array) -> dict[str, jax.Array]:
    """Returns the three terms of Eq. 8.

    Args:
      probabilities, others: p+ and p- of two views of the same images, float [N, n].

    Returns:
      `winner_take_all_loss`, `collapse_loss` and `similarity_loss`, float32 [].
    """
    # Eqs. 4 and 5 depend only on the mean of P. The mean of (P+ + P-) / 2 (Eq. 7) is the mean over all 2N views.
    views = jnp.stack([probabilities, others])
    return {
        "winner_take_all_loss": winner_take_all_loss(views),
        "collapse_loss": collapse_loss(views),
        "similarity_loss": similarity_loss(probabilities, others),
    }


def url_som_loss(
    terms: Mapping[str, jax.Array], similarity_weight: float = 2.0, collapse_weight: float = 1.0
) -> jax.Array:
    """Returns the weighted sum of the terms (Eq. 8), float32 [].

    Example:
      >>> import jax.numpy as jnp
      >>> one_hot = jnp.eye(4)  # each of four neurons wins one image, in both views
      >>> float(url_som_loss(loss_terms(one_hot, one_hot)))
      0.5

    Args:
      terms: the result of `loss_terms`.
      similarity_weight: gamma.
      collapse_weight: 1 in the paper.
    """
    weighted = collapse_weight * terms["collapse_loss"] + similarity_weight * terms["similarity_loss"]
    return terms["winner_take_all_loss"] + weighted


def _direction(sums: Mapping[str, Any]) -> np.ndarray:
    """Returns the mean of P over all examples and their two views, [n]."""
    return sums["direction"] / sums["examples"]


def _dead(name: str) -> Callable[[Mapping[str, Any]], int | None]:
    """Returns a function that counts dead neurons from the sum `name`, or returns None if it is missing."""
    return lambda sums: dead_neurons(sums[name]) if name in sums else None


def _total(name: str) -> Callable[[Mapping[str, Any]], int | None]:
    return lambda sums: int(np.sum(sums[name])) if name in sums else None


def _selectivity(*names: str) -> Callable[[Mapping[str, Any]], float | None]:
    """Returns a function that computes neural selectivity from the sums `names`, or None if one is missing."""

    def compute(sums: Mapping[str, Any]) -> float | None:
        if not all(name in sums for name in names):
            return None
        return float(neural_selectivity(*(jnp.asarray(sums[name]) for name in names)))

    return compute


SELECTIVITY_PANEL = ("Classes on the map", "neural selectivity")
DEAD_PANEL = ("Dead neurons", "neurons that win no sample")

URLSOM_METRICS = {
    # The weighted sum of the next three metrics, computed by `URLSOM.compute_metrics`.
    "loss": Metric(panel=("Loss", "loss"), better=min),
    "winner_take_all_loss": Metric(lambda sums: float(np.sum(_direction(sums)) / np.sqrt(len(_direction(sums))))),
    "collapse_loss": Metric(lambda sums: float(collapse_loss(jnp.asarray(_direction(sums), jnp.float32)))),
    "similarity_loss": Metric(lambda sums: float(sums["similarity_loss"] / sums["examples"])),
    "dead_neurons": Metric(_dead("counts"), pooled=True, panel=DEAD_PANEL, total="images"),
    "dead_neurons_train": Metric(
        _dead("train_counts"), pooled=True, panel=DEAD_PANEL, label="training set", total="images_train"
    ),
    "images": Metric(_total("counts"), pooled=True, decimals=0),
    "images_train": Metric(_total("train_counts"), pooled=True, decimals=0),
    "neural_selectivity": Metric(_selectivity("table"), pooled=True, panel=SELECTIVITY_PANEL),
    "neural_selectivity_train": Metric(
        _selectivity("train_table"), pooled=True, panel=SELECTIVITY_PANEL, label="training set"
    ),
    "neural_selectivity_transferred": Metric(
        _selectivity("train_table", "table"), pooled=True, panel=SELECTIVITY_PANEL, label="labels from training"
    ),
}
"""Metrics of URL-SOM that do not depend on the grid."""
