"""What every model tells the one training loop."""

from collections.abc import Mapping

import flax
import jax

from kvae.kohonen import Statistics


@flax.struct.dataclass
class Objective:
    """The outcome of a training batch.

    Attributes:
      loss: float32 [], what the optimiser minimises.
      metrics: float32 [] by name, to be averaged over the steps between two logs; `loss` is one of them.
      counts: float32 [K] by map, how often each code or neuron won.
      statistics: by codebook, what its update needs; those of micro-batches add up.
    """

    loss: jax.Array
    metrics: Mapping[str, jax.Array]
    counts: Mapping[str, jax.Array]
    statistics: Mapping[str, Statistics]
