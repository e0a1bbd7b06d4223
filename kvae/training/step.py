"""The training state and the training step of one replica."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from kvae.core.errors import InputError
from kvae.models.model import Batch, LossAndMetrics, Model

STREAMS = ("augmentation", "dropout")
"""Names of the random streams that a model gets in training."""


@struct.dataclass
class MetricSums:
    """Sums since the last log, which stay on the device until the next log.

    Attributes:
      steps: int32 [], number of steps.
      metrics: float32 [] by name, sums of the metrics.
      counts: float32 [K] or [codebooks, K] by codebook, how often each code was chosen.
    """

    steps: jax.Array
    metrics: dict[str, jax.Array]
    counts: dict[str, jax.Array]


@struct.dataclass
class TrainState:
    """The state that a training step updates.

    Attributes:
      seed: int32 [], the seed of initialisation, data order and random streams.
      step: int32 [], number of updates done.
      finite: bool [], False once a loss or gradient is not finite; that step and all later ones change nothing else.
      params: parameters, trained by gradient descent.
      collections: the model's other variables, such as the collection `codebook`.
      optimizer: state of the optimiser.
      metric_sums: sums since the last log.
    """

    seed: jax.Array
    step: jax.Array
    finite: jax.Array
    params: Any
    collections: Any
    optimizer: optax.OptState
    metric_sums: MetricSums

    @property
    def variables(self) -> dict[str, Any]:
        """The variables that `model.apply` takes."""
        return {"params": self.params, **self.collections}


def example_batch(example: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Returns a batch of zeros with the shapes and dtypes of one example: arrays [1, ...] by name."""
    return {name: jnp.zeros((1, *jnp.shape(value)), jnp.asarray(value).dtype) for name, value in example.items()}


def initial_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    batch: Batch,
    data_variables: Mapping[str, Any],
    seed: jax.Array,
) -> TrainState:
    """Returns the state before the first step.

    Args:
      model: the model; its method `loss_and_metrics` creates the variables.
      optimizer: the optimiser of the parameters.
      batch: an example of a training batch; only shapes and dtypes matter.
      data_variables: collections that replace those of `init`, see `Model.variables_from_data`.
      seed: int32 [].

    Raises:
      InputError: `loss_and_metrics` does not return a `LossAndMetrics` with a metric "loss".
    """
    key, batch = jax.random.key(seed), _with_mask(batch)
    variables = dict(model.init({"params": key, **_streams(key, 0)}, batch, method="loss_and_metrics"))
    variables |= data_variables
    params = variables.pop("params", {})
    outcome = jax.eval_shape(
        lambda variables: _outcome(model, variables, batch, key)[0], {"params": params, **variables}
    )
    if not (isinstance(outcome, LossAndMetrics) and isinstance(outcome.metrics, Mapping) and "loss" in outcome.metrics):
        raise InputError(
            f"loss_and_metrics of {type(model).__name__} returns {_result(outcome)}; it must return "
            'kvae.LossAndMetrics(loss, {"loss": loss, ...})'
        )
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (outcome.metrics, outcome.counts))
    return TrainState(
        seed=jnp.asarray(seed, jnp.int32),
        step=jnp.zeros((), jnp.int32),
        finite=jnp.ones((), bool),
        params=params,
        collections=variables,
        optimizer=optimizer.init(params),
        metric_sums=MetricSums(jnp.zeros((), jnp.int32), *map(dict, zeros)),
    )


def _result(outcome: Any) -> str:
    """Describes the value that a user's `loss_and_metrics` returned."""
    if isinstance(outcome, LossAndMetrics):
        return "a LossAndMetrics without the metric 'loss'"
    return "None" if outcome is None else f"an object of type {type(outcome).__name__}"


def _with_mask(batch: Batch) -> Batch:
    """Adds the mask that evaluation batches have to a training batch; it is True for every example."""
    return {**batch, "mask": jnp.ones(len(next(iter(batch.values()))), bool)}


def _streams(key: jax.Array, part: int | jax.Array) -> dict[str, jax.Array]:
    """Returns a key for each random stream; each micro-batch has its own keys."""
    key = jax.random.fold_in(key, part)
    return {name: jax.random.fold_in(key, number) for number, name in enumerate(STREAMS)}


def _outcome(
    model: Model, variables: Mapping[str, Any], batch: Batch, key: jax.Array, part: int | jax.Array = 0
) -> tuple[LossAndMetrics, Mapping[str, Any]]:
    """Returns loss and metrics, and the collections that a forward pass can update.

    The collection `codebook` is not among them: codebooks are updated once per batch, from all its micro-batches.
    """
    mutable = [name for name in variables if name not in ("params", "codebook")]
    return model.apply(variables, batch, method="loss_and_metrics", rngs=_streams(key, part), mutable=mutable)


def train_step(
    model: Model, optimizer: optax.GradientTransformation, micro_batches: int, state: TrainState, batch: Batch
) -> TrainState:
    """Returns the state after one update of parameters and codebooks.

    Micro-batches are processed one after the other. Their gradients are averaged and their codebook statistics are
    summed; then parameters and codebooks are updated once. If the loss or the gradient is not finite, only
    `state.finite` changes.

    Args:
      model: the model.
      optimizer: the optimiser that made `state.optimizer`.
      micro_batches: number of micro-batches; must divide b.
      state: the state before the step.
      batch: the global batch, arrays [b, ...] by name.
    """
    key = jax.random.fold_in(jax.random.key(state.seed), state.step)

    def forward(params, batch, part):
        outcome, updated = _outcome(model, {"params": params, **state.collections}, batch, key, part)
        return outcome.loss, (outcome, updated)

    def forward_and_backward(batch, part):
        gradients, (outcome, updated) = jax.grad(forward, has_aux=True)(state.params, batch, part)
        return gradients, outcome, dict(updated)

    gradients, outcome, updated = _accumulate(forward_and_backward, _with_mask(batch), micro_batches)
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
    collections = {**state.collections, **updated}
    if "codebook" in collections:
        variables = {"params": state.params, **collections}
        _, changed = model.apply(variables, outcome.statistics, method="update_codebooks", mutable=["codebook"])
        collections |= changed
    metric_sums = MetricSums(
        state.metric_sums.steps + 1,
        jax.tree.map(jnp.add, state.metric_sums.metrics, dict(outcome.metrics)),
        jax.tree.map(jnp.add, state.metric_sums.counts, dict(outcome.counts)),
    )
    new = state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        collections=collections,
        optimizer=optimizer_state,
        metric_sums=metric_sums,
    )
    finite = state.finite & jnp.isfinite(outcome.loss) & jnp.isfinite(optax.tree.norm(gradients))
    kept = jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, state)
    return kept.replace(finite=finite)


def _accumulate(
    forward_and_backward: Callable, batch: Batch, micro_batches: int
) -> tuple[Any, LossAndMetrics, dict[str, Any]]:
    """Returns gradients and metrics averaged over micro-batches, and counts and statistics summed over them.

    Forward passes may update collections, such as the running averages of batch normalisation. Each micro-batch starts
    from the same values, and the results are averaged.
    """
    if micro_batches == 1:
        return forward_and_backward(batch, 0)

    def split(array):
        # Example i goes to micro-batch i % micro_batches, so that each device has its share of every micro-batch.
        return jnp.moveaxis(array.reshape(-1, micro_batches, *array.shape[1:]), 1, 0)

    parts = jax.tree.map(split, batch)
    first = forward_and_backward(jax.tree.map(lambda part: part[0], parts), 0)

    def add(total, part):
        return jax.tree.map(jnp.add, total, forward_and_backward(*part)), None

    rest = jax.tree.map(lambda part: part[1:], parts), jnp.arange(1, micro_batches)
    # A convolution inside a loop is many times slower on a CPU.
    unroll = micro_batches - 1 if jax.default_backend() == "cpu" else 1
    (gradients, outcome, updated), _ = jax.lax.scan(add, first, rest, unroll=unroll)

    def mean(tree):
        return jax.tree.map(lambda leaf: (leaf / micro_batches).astype(leaf.dtype), tree)

    outcome = outcome.replace(loss=mean(outcome.loss), metrics=mean(outcome.metrics))
    return mean(gradients), outcome, mean(updated)
