"""Optimisers and learning-rate schedules, by name."""

from collections.abc import Callable
from typing import Annotated, Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from kvae.core.errors import InputError, choose
from kvae.core.fields import Count, NotNegative, OneOf


def _cooldown(rate: float, steps: int) -> optax.Schedule:
    last = max(steps // 5, 1)
    falling = optax.linear_schedule(rate, rate / 100, last)
    return optax.join_schedules([optax.constant_schedule(rate), falling], [steps - last])


SCHEDULES: dict[str, Callable[[float, int], optax.Schedule]] = {
    "constant": lambda rate, steps: optax.constant_schedule(rate),
    "cooldown": _cooldown,
    "cosine": lambda rate, steps: optax.cosine_decay_schedule(rate, max(steps, 1), alpha=0.01),
}
"""Learning-rate schedules after the warm-up, by name: functions of the rate and the number of remaining steps.

`cooldown` keeps the rate constant, then lowers it linearly to 1% over the last fifth of the steps (Hägele et al.,
"Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations", 2024). `cosine` lowers the rate along half
a cosine to 1% at the last step (Loshchilov and Hutter, "SGDR", 2017).
"""

CONSISTENT_RMS = 0.2
"""Root mean square of Muon's updates at a rate of 1. It matches Adam's, so one rate suits both (Liu et al., 2025)."""


def _adam(rate: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    return optax.adamw(rate, weight_decay=weight_decay) if weight_decay else optax.adam(rate)


def _muon(rate: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    return muon(
        rate,
        weight_decay=weight_decay,
        adam_weight_decay=weight_decay,
        adam_learning_rate=rate,
        muon_weight_dimension_numbers=_matrices,
        consistent_rms=CONSISTENT_RMS,
    )


def _matrices(params: Any) -> Any:
    """Returns the input and output axes of each kernel that Muon treats as a matrix; None for other leaves.

    The last axis is the output, and all others are inputs. Dense kernels have two axes and 2D convolution kernels four.
    Other kernels, such as those of attention, may have several output axes, so Adam updates them.
    """

    def axes(path: tuple, leaf: jax.Array) -> MuonDimensionNumbers | None:
        is_matrix = getattr(path[-1], "key", None) == "kernel" and leaf.ndim in (2, 4)
        return MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1) if is_matrix else None

    return jax.tree_util.tree_map_with_path(axes, params)


OPTIMIZERS: dict[str, Callable[[optax.Schedule, float], optax.GradientTransformation]] = {"adam": _adam, "muon": _muon}
"""Optimisers by name: functions of the learning-rate schedule and the weight decay.

`muon` orthogonalises the momentum of each dense or convolutional kernel, as a matrix from inputs to outputs (Jordan et
al., "Muon: An optimizer for hidden layers in neural networks", 2024), with updates scaled as in Liu et al., "Muon is
Scalable for LLM Training", 2025. All other parameters, such as biases, use Adam with Nesterov momentum.
"""


def make_optimizer(
    steps: int,
    name: Annotated[str, OneOf(OPTIMIZERS)] = "adam",
    learning_rate: NotNegative = 1e-3,
    schedule: Annotated[str, OneOf(SCHEDULES)] = "constant",
    warmup: tuple[tuple[Count, NotNegative], ...] = (),
    weight_decay: NotNegative = 0.0,
    clip_norm: NotNegative = 0.0,
) -> optax.GradientTransformation:
    """Returns an optimiser that can clip the global norm of the gradients.

    Args:
      steps: total number of updates of the run.
      name: the optimiser; the authors' release uses Adam.
      learning_rate: the rate after the warm-up.
      schedule: how the rate changes after the warm-up.
      warmup: pairs (step, rate), such as ((1000, 1e-4), (2000, 5e-4)); each rate applies until its step.
      weight_decay: decoupled weight decay, as in AdamW (Loshchilov and Hutter, 2019); 0 in the authors' release.
      clip_norm: maximum global norm of the gradients; 0 turns clipping off.

    Raises:
      InputError: no optimiser or schedule has that name, or the steps of the warm-up do not increase.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = make_optimizer(steps=10, learning_rate=0.5)
      >>> params = {"bias": jnp.zeros(3)}
      >>> updates, state = optimizer.update({"bias": jnp.ones(3)}, optimizer.init(params), params)
      >>> updates["bias"].round(3).tolist()
      [-0.5, -0.5, -0.5]
    """
    optimize, decay = choose("optimizer.name", name, OPTIMIZERS), choose("optimizer.schedule", schedule, SCHEDULES)
    ends, rates = [step for step, _ in warmup], [rate for _, rate in warmup]
    if ends != sorted(set(ends)):
        raise InputError(f"optimizer.warmup is {warmup}; its steps must increase")
    last = decay(learning_rate, steps - max(ends, default=0))
    rate = optax.join_schedules([*(optax.constant_schedule(rate) for rate in rates), last], ends)
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    return optax.chain(clip, optimize(rate, weight_decay))
