"""How well the neurons of a map tell classes apart (N. Kermiche, "Self-Organizing Representation Learning", 2021).

Both functions read a table of how many samples of each class each neuron won; the tables of batches add up.
"""

import jax
import jax.numpy as jnp


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


def dead_neurons(table: jax.Array) -> jax.Array:
    """The number of neurons that won no sample: [n, classes] -> int32 []."""
    return jnp.sum(jnp.all(table == 0, axis=-1), dtype=jnp.int32)
