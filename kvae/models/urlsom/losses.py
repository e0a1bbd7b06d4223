"""Losses and measures of URL-SOM (N. Kermiche, "Self-Organizing Representation Learning", 2021).

`neural_selectivity` reads a table of how many samples of each class each neuron won; the tables of batches add up.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from kvae.models.model import Metric


def neural_selectivity(table: jax.Array, held_out: jax.Array | None = None) -> jax.Array:
    """The share of samples whose label is that of their winning neuron (Section V.C).

    A neuron's label is the most frequent among its samples, the lowest one in a tie.

    Args:
      table: [n, classes], how many samples of each class each neuron won.
      held_out: the same of other samples, which are then judged by the labels that `table` gives; a neuron without a
        sample in `table` has no label, and agrees with none. By default `table` itself is judged, as in the paper.

    Returns:
      float32 [], from 0 to 1; NaN if there is no sample to judge.
    """
    judged = table if held_out is None else held_out
    agreeing = jnp.take_along_axis(judged, jnp.argmax(table, axis=-1, keepdims=True), axis=-1)[:, 0]
    return jnp.sum(jnp.where(jnp.any(table > 0, axis=-1), agreeing, 0)) / jnp.sum(judged)


def dead_neurons(counts: np.ndarray) -> int:
    """The number of neurons that won no sample, from how many each won, [n]."""
    return int(np.sum(np.asarray(counts) == 0))


def directions(probabilities: jax.Array) -> jax.Array:
    """P = p / |p|, points of the unit sphere (Eq. 2): float [..., n] -> float32 [..., n]."""
    probabilities = probabilities.astype(jnp.float32)
    return probabilities / jnp.linalg.norm(probabilities, axis=-1, keepdims=True)


def _mean_direction(probabilities):
    """The mean of P over all leading axes, [n]."""
    return jnp.mean(directions(probabilities), axis=range(probabilities.ndim - 1))


def winner_take_all_loss(probabilities: jax.Array) -> jax.Array:
    """mean_i P_i . U, with P = p / |p| and U = (1, ..., 1) / sqrt(n) (Eq. 4): 1 for even outputs, 1/sqrt(n) one-hot.

    Args:
      probabilities: p, float [..., n]; its rows sum to 1.

    Returns:
      float32 [].
    """
    return jnp.sum(_mean_direction(probabilities)) / math.sqrt(probabilities.shape[-1])


def collapse_loss(probabilities: jax.Array) -> jax.Array:
    """1 - A . U, with A = a / |a| and a = mean_i P_i (Eq. 5): 0 for spread winners, 1 - 1/sqrt(n) for a single one.

    Arguments and result: as `winner_take_all_loss`.
    """
    return 1 - jnp.sum(directions(_mean_direction(probabilities))) / math.sqrt(probabilities.shape[-1])


def similarity_loss(probabilities: jax.Array, others: jax.Array) -> jax.Array:
    """1 - mean_i P+_i . P-_i, of two views of the same images, [..., n] each (Eq. 6): float32 [], 0 if they agree."""
    return 1 - jnp.mean(jnp.sum(directions(probabilities) * directions(others), axis=-1))


def terms(probabilities: jax.Array, others: jax.Array) -> dict[str, jax.Array]:
    """The three terms of Eq. 8 of two views of each image, p+ and p-, float [N, n] each: float32 [] by name."""
    # Eqs. 4 and 5 see P only through its mean, and the mean of (P+ + P-) / 2 (Eq. 7) is that of all 2N views.
    views = jnp.stack([probabilities, others])
    return {
        "winner_take_all_loss": winner_take_all_loss(views),
        "collapse_loss": collapse_loss(views),
        "similarity_loss": similarity_loss(probabilities, others),
    }


def url_som_loss(terms: Mapping[str, jax.Array], similarity_weight: float = 2.0, collapse_weight: float = 1.0):
    """The terms weighted and added up (Eq. 8).

    Args:
      terms: as `terms` gives them.
      similarity_weight: gamma.
      collapse_weight: 1 in the paper.
    """
    weighted = collapse_weight * terms["collapse_loss"] + similarity_weight * terms["similarity_loss"]
    return terms["winner_take_all_loss"] + weighted


def _direction(sums):
    """The mean of P over all examples and both their views, [n]."""
    return sums["direction"] / sums["examples"]


def _dead(name):
    return lambda sums: dead_neurons(sums[name]) if name in sums else None


def _selectivity(*names):
    """Neural selectivity of a table, or of one that is judged by the labels of another; None where one is missing."""

    def value(sums):
        if not all(name in sums for name in names):
            return None
        return float(neural_selectivity(*(jnp.asarray(sums[name]) for name in names)))

    return value


CLASSES = ("Classes on the map", "neural selectivity")
DEAD = ("Dead neurons", "neurons that win no sample")

METRICS = {
    # Of the three below, by the model's weights.
    "loss": Metric(lambda sums: None, panel=("Loss", "loss"), better=min),
    "winner_take_all_loss": Metric(lambda sums: float(np.sum(_direction(sums)) / np.sqrt(len(_direction(sums))))),
    "collapse_loss": Metric(lambda sums: float(collapse_loss(jnp.asarray(_direction(sums), jnp.float32)))),
    "similarity_loss": Metric(lambda sums: float(sums["similarity_loss"] / sums["examples"])),
    "dead_neurons": Metric(_dead("counts"), pooled=True, panel=DEAD),
    "dead_neurons_train": Metric(_dead("train_counts"), pooled=True, panel=DEAD, label="training set"),
    "neural_selectivity": Metric(_selectivity("table"), pooled=True, panel=CLASSES),
    "neural_selectivity_train": Metric(_selectivity("train_table"), pooled=True, panel=CLASSES, label="training set"),
    "neural_selectivity_transferred": Metric(
        _selectivity("train_table", "table"), pooled=True, panel=CLASSES, label="labels from training"
    ),
}
"""The metrics of URL-SOM on any grid; None where the sums do not tell."""
