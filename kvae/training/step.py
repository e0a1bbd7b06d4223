"""The state of training, and the step that takes it from one batch to the next."""

from collections.abc import Callable, Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class Interval:
    """Sums since the last log, kept on the device so that nothing leaves it in between."""

    steps: jax.Array  # [] int32
    metrics: dict[str, jax.Array]  # float32 []
    counts: dict[str, jax.Array]  # float32 [K]: how often each code won


@flax.struct.dataclass
class TrainState:
    """Everything a step reads and writes; with replicas every leaf has a leading replica axis.

    Attributes:
      seed: int32 [], of initialisation, data order and augmentation.
      step: int32 [], updates done so far.
      finite: bool [], False once a loss or gradient was not finite: the state then stays as it was before that step.
      params: trained by gradient descent.
      collections: the other variables, `codebook` among them.
      optimizer: the optimiser's state.
      interval: sums since the last log.
    """

    seed: jax.Array
    step: jax.Array
    finite: jax.Array
    params: Any
    collections: Any
    optimizer: optax.OptState
    interval: Interval

    @property
    def variables(self) -> dict:
        """What `model.apply` takes."""
        return {"params": self.params, **self.collections}


def make_optimizer(
    learning_rate: float, warmup: Sequence[tuple[int, float]], clip_norm: float
) -> optax.GradientTransformation:
    """Adam, after clipping the gradients to a global norm as in the authors' release (its weight decay is 0).

    Args:
      learning_rate: at last.
      warmup: pairs of a step and the rate that holds until it: ((1000, 1e-4), (2000, 5e-4)).
      clip_norm: the largest norm; 0 leaves the gradients as they are.
    """
    steps, rates = [step for step, _ in warmup], [*(rate for _, rate in warmup), learning_rate]
    schedule = optax.join_schedules([optax.constant_schedule(rate) for rate in rates], steps)
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    return optax.chain(clip, optax.adam(schedule if warmup else learning_rate))


def initial_state(
    model: nn.Module, optimizer: optax.GradientTransformation, image_shape: tuple[int, ...], seed: jax.Array
) -> TrainState:
    """The state before the first step.

    Args:
      model: has a method `objective`.
      optimizer: of the parameters.
      image_shape: (h, w, 3) of the images.
      seed: int32 [].
    """
    images = jnp.zeros((1, *image_shape), jnp.uint8)
    variables = model.init(jax.random.key(seed), images)
    params = variables.pop("params")
    objective = jax.eval_shape(
        lambda variables: _objective(model, variables, images, jax.random.key(0))[0], {"params": params, **variables}
    )
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (objective.metrics, objective.counts))
    return TrainState(
        seed=jnp.asarray(seed, jnp.int32),
        step=jnp.zeros((), jnp.int32),
        finite=jnp.ones((), bool),
        params=params,
        collections=variables,
        optimizer=optimizer.init(params),
        interval=Interval(jnp.zeros((), jnp.int32), *zeros),
    )


def _objective(model, variables, images, key):
    """The objective, and what a forward pass updates: all collections but the codebooks, which wait for the batch."""
    mutable = [name for name in variables if name not in ("params", "codebook")]
    return model.apply(variables, images, method="objective", rngs={"augmentation": key}, mutable=mutable)


def train_step(
    model: nn.Module, optimizer: optax.GradientTransformation, micro_batches: int, state: TrainState, images: jax.Array
) -> TrainState:
    """One update of parameters and codebooks from a global batch of uint8 images [b, h, w, 3].

    Micro-batches are gone through one after the other; gradients are averaged, codebook statistics added up, and both
    applied once. A step whose loss or gradient is not finite changes nothing but `finite`.
    """
    key = jax.random.fold_in(jax.random.key(state.seed), state.step)

    def forward(params, images):
        objective, updated = _objective(model, {"params": params, **state.collections}, images, key)
        return objective.loss, (objective, updated)

    def forward_and_backward(images):
        gradients, (objective, updated) = jax.grad(forward, has_aux=True)(state.params, images)
        return gradients, objective, updated

    gradients, objective, updated = _accumulate(forward_and_backward, images, micro_batches)
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
    collections = {**state.collections, **updated}
    if "codebook" in collections:
        variables = {"params": state.params, **collections}
        _, changed = model.apply(variables, objective.statistics, method="update_codebooks", mutable=["codebook"])
        collections |= changed
    interval = Interval(
        state.interval.steps + 1,
        jax.tree.map(jnp.add, state.interval.metrics, objective.metrics),
        jax.tree.map(jnp.add, state.interval.counts, objective.counts),
    )
    new = state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        collections=collections,
        optimizer=optimizer_state,
        interval=interval,
    )
    finite = state.finite & jnp.isfinite(objective.loss) & jnp.isfinite(optax.tree.norm(gradients))
    kept = jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, state)
    return kept.replace(finite=finite)


def _accumulate(forward_and_backward: Callable, images: jax.Array, micro_batches: int):
    """Gradients and metrics averaged over micro-batches, counts and statistics added up."""
    if micro_batches == 1:
        return forward_and_backward(images)
    # Every n-th image, not every n-th part: each device then has its share of every micro-batch.
    parts = jnp.moveaxis(images.reshape(-1, micro_batches, *images.shape[1:]), 1, 0)
    total = forward_and_backward(parts[0])
    # A convolution inside a loop is many times slower on a CPU.
    unroll = micro_batches - 1 if jax.default_backend() == "cpu" else 1
    add = lambda total, part: (jax.tree.map(jnp.add, total, forward_and_backward(part)), None)  # noqa: E731
    (gradients, objective, updated), _ = jax.lax.scan(add, total, parts[1:], unroll=unroll)
    mean = lambda tree: jax.tree.map(lambda leaf: leaf / micro_batches, tree)  # noqa: E731
    objective = objective.replace(loss=mean(objective.loss), metrics=mean(objective.metrics))
    return mean(gradients), objective, updated


def over_replicas(function: Callable, replicas: int, *, shared_arguments: tuple[int, ...] = ()) -> Callable:
    """`function` for each replica: of arguments whose leaves have a leading replica axis, into such a result.

    With one replica there is no such axis. On a CPU the replicas are unrolled into one program, for XLA:CPU runs a
    convolution whose kernel has a batch axis several times slower; elsewhere they are `vmap`ped.

    Args:
      function: of positional arguments.
      replicas: how many.
      shared_arguments: positions of the arguments that all replicas share.
    """
    if replicas == 1:
        return function

    def unrolled(*arguments):
        def one(i):
            return function(
                *(
                    argument if position in shared_arguments else jax.tree.map(lambda leaf: leaf[i], argument)
                    for position, argument in enumerate(arguments)
                )
            )

        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(one(i) for i in range(replicas)))

    def mapped(*arguments):
        axes = [None if position in shared_arguments else 0 for position in range(len(arguments))]
        return jax.vmap(function, in_axes=axes)(*arguments)

    return unrolled if jax.default_backend() == "cpu" else mapped


def replica_of(tree, replica: int, replicas: int):
    """The part of a tree that belongs to one replica; the tree itself where there is only one."""
    return tree if replicas == 1 else jax.tree.map(lambda leaf: leaf[replica], tree)
