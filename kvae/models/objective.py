"""What every model tells the one training loop.

A model has the methods `objective`, `totals` and `summarize`, and three constants of its class:

- `needs_whole_batch`: whether its loss is not a mean over examples, so that micro-batches would change it;
- `tallies_train`: whether `summarize` also reads the sums of its method `tally` over the training set (`train_<name>`);
- `remedy`: what the user is told where hardly any code or neuron is in use.
"""

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
