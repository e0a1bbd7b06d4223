"""Times the same training step in PyTorch, in a process of its own, alternating with kvae's."""

import importlib.util
import multiprocessing
from typing import Any

import jax
import numpy as np

from kvae.benchmark.timing import log_progress
from kvae.benchmark.train_step import TimedStep
from kvae.core.errors import InputError
from kvae.training.config.sections import flatten

COMPARED = {
    "replicas": (1,),
    "micro_batches": (1,),
    "model.name": ("vqvae", "vqvae2"),
    "model.augmentations": ((),),
    "model.dtype": ("float32",),
    "model.quantizer.name": ("kohonen",),
    "model.quantizer.neighborhood": ("hard", "none"),
    "model.quantizer.update_empty": (True,),
    "model.quantizer.metric": ("euclidean",),
    "model.quantizer.gradient": ("straight_through",),
    "model.quantizer.restart_below": (0.0,),
    "model.quantizer.start": ("normal",),
    "model.quantizer.codebook_dim": (None,),
    "optimizer.name": ("adam",),
    "optimizer.schedule": ("constant",),
    "optimizer.warmup": ((),),
    "optimizer.weight_decay": (0.0,),
}
"""Values of the fields that `kvae.benchmark.torch_twin` implements; it implements every value of the other fields."""

FORMS = {
    "PyTorch, eager": {"channels_last": False, "is_compiled": False},
    "PyTorch, channels last": {"channels_last": True, "is_compiled": False},
    "PyTorch, compiled": {"channels_last": True, "is_compiled": True},
}
"""The ways to run PyTorch, by name: its memory format, and whether `torch.compile` is used."""

LARGEST_DIFFERENCE = 1e-4
"""Largest relative difference of the two losses for the same weights and batch."""


def check_comparable(config: dict[str, Any]) -> None:
    """Raises InputError if PyTorch is missing, or if the twin does not implement the config."""
    for name, value in flatten(config).items():
        values = COMPARED.get(name, (value,))
        if value not in values:
            others = " or ".join(map(repr, values))
            raise InputError(f"{name} is {value!r}; --torch compares only {others}: set --config.{name}={values[0]}")
    if importlib.util.find_spec("torch") is None:
        raise InputError("torch is not installed: pip install -e '.[bench]'")


class TorchStep:
    """A training step of PyTorch with the weights and the batch of a step of kvae; see `TimedStep`.

    It runs in another process, so that PyTorch has the memory allocator and the threads that its users have.

    Args:
      form: A name in `FORMS`.
      step: kvae's step.

    Attributes:
      seconds: Seconds per step of each timed group of steps; `alternate` appends to it.
      loss: The loss of the first step.
    """

    def __init__(self, form: str, step: TimedStep):
        context = multiprocessing.get_context("spawn")
        self._pipe, other_end = context.Pipe()
        setup = {**FORMS[form], **_setup(step)}
        # A daemon ends with this process.
        context.Process(target=_serve, args=(setup, other_end), daemon=True).start()
        other_end.close()
        self.steps_at_once, self.seconds = step.steps_at_once, []
        self.loss = self._advance(1)[1]
        self._advance(3)  # `torch.compile` compiles again when the strides of its inputs change

    def _advance(self, steps: int) -> tuple[float, float]:
        try:
            self._pipe.send(steps)
            return self._pipe.recv()
        except (EOFError, OSError) as error:
            raise InputError("PyTorch's process has ended; its error is printed above") from error

    def advance(self, steps: int) -> float:
        """Runs training steps and returns the seconds per step."""
        return self._advance(steps)[0]


def _serve(*arguments: Any) -> None:
    from kvae.benchmark.torch_twin import serve  # PyTorch is imported in its own process only

    serve(*arguments)


def _setup(step: TimedStep) -> dict[str, Any]:
    """Returns the batch, weights and fields that `kvae.benchmark.torch_twin.TwinStep` takes."""
    state = jax.tree.map(lambda leaf: np.asarray(leaf)[0], step.groups[0])
    optimizer, dataset = step.config["optimizer"], step.config["dataset"]
    codebooks = []
    for name, layer in step.model.quantizers.items():
        distances = np.asarray(layer.grid.distances())
        near = (distances < layer.radius) & (distances > 0) & layer.is_map
        fields = {"decay": layer.decay, "commitment_weight": layer.commitment_weight}
        fields |= {name: getattr(layer.spreading, name) for name in ("initial_width", "lowest_width", "shrink_step")}
        leaves = state.collections["codebook"]
        codebooks.append((leaves["quantizer" if len(leaves) == 1 else f"quantizer_{name}"], near, fields))
    return {
        "params": flatten(state.params),
        "codebooks": codebooks,
        "images": np.asarray(step.batch[0]["image"])[0],
        "mean": dataset["mean"],
        "std": dataset["std"],
        "learning_rate": optimizer["learning_rate"],
        "clip_norm": optimizer["clip_norm"],
    }


def torch_steps(step: TimedStep) -> dict[str, TorchStep]:
    """Returns a step of PyTorch for each name in `FORMS`.

    Raises:
      InputError: A loss differs from kvae's for the same weights and batch.
    """
    steps = {}
    for form in FORMS:
        log_progress(f"starting {form}")
        steps[form] = TorchStep(form, step)
    loss = step.loss()
    for form, other in steps.items():
        if not abs(other.loss - loss) <= LARGEST_DIFFERENCE * abs(loss):
            raise InputError(f"the loss is {other.loss:.6g} in {form}, and {loss:.6g} in kvae, for the same weights")
    return steps
