"""How the parameters learn: the optimisers by name, and how the learning rate runs."""

from collections.abc import Callable
from typing import Annotated

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from kvae.core.errors import InputError
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
"""By name, how the learning rate runs after the warm-up: from a rate and the number of steps that are left.

`cooldown` holds the rate and takes it down to a hundredth, in a straight line, over the last fifth of the steps (Hägele
et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations", 2024). `cosine` falls along half a
cosine to a hundredth at the last step (Loshchilov and Hutter, "SGDR", 2017).
"""

CONSISTENT_RMS = 0.2
"""The root mean square of Muon's updates at a rate of 1: that of Adam's, so that one rate suits both (Liu et al.)."""


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


def _matrices(params):
    """Which axes of each parameter make it a matrix: of kernels the last and all before; None for other parameters.

    Kernels of dense layers have two axes, and those of images' convolutions four. In others, such as attention's, the
    outputs may be more than the last axis.
    """

    def axes(path, leaf):
        is_kernel = getattr(path[-1], "key", None) == "kernel" and leaf.ndim in (2, 4)
        return MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1) if is_kernel else None

    return jax.tree_util.tree_map_with_path(axes, params)


OPTIMIZERS: dict[str, Callable[[optax.Schedule, float], optax.GradientTransformation]] = {"adam": _adam, "muon": _muon}
"""By name, from a learning rate and a weight decay.

`muon` makes the momentum of each dense or convolutional kernel orthogonal, as a matrix from inputs to outputs (Jordan
et al., "Muon: An optimizer for hidden layers in neural networks", 2024; its updates scaled as in Liu et al., "Muon is
Scalable for LLM Training", 2025). All else, such as biases, learns by Adam with Nesterov's momentum.
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
    """An optimiser, after clipping the gradients to a global norm as in the authors' release.

    Args:
      steps: of the whole run.
      name: a name in `OPTIMIZERS`; the authors' release has Adam.
      learning_rate: the rate after the warm-up.
      schedule: how the rate runs after the warm-up, a name in `SCHEDULES`.
      warmup: pairs of a step and the rate that holds until it: ((1000, 1e-4), (2000, 5e-4)).
      weight_decay: decoupled weight decay, as in AdamW (Loshchilov and Hutter, 2019); 0 in the release.
      clip_norm: the largest global norm of the gradients; 0 leaves them as they are.

    Raises:
      InputError: the steps of the warm-up do not rise.
    """
    ends, rates = [step for step, _ in warmup], [rate for _, rate in warmup]
    if ends != sorted(set(ends)):
        raise InputError(f"optimizer.warmup is {warmup}; its steps must rise from pair to pair")
    last = SCHEDULES[schedule](learning_rate, steps - max(ends, default=0))
    rate = optax.join_schedules([*(optax.constant_schedule(rate) for rate in rates), last], ends)
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    return optax.chain(clip, OPTIMIZERS[name](rate, weight_decay))
