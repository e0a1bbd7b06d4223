"""Compares training steps: of several configs, and of the same model in PyTorch."""

import sys
import time
from collections.abc import Sequence
from typing import Protocol

import jax
import numpy as np
from tqdm import tqdm

from kvae.benchmark.timing import log_progress, matmul_gigaflop_per_second, time_row
from kvae.benchmark.torch_steps import torch_steps
from kvae.benchmark.train_step import TimedStep
from kvae.data import ArrayExamples
from kvae.training import loop
from kvae.training.config.sections import load_data
from kvae.training.parallel import devices


class Alternating(Protocol):
    """A step that `alternate` times.

    Attributes:
      seconds: Seconds per step of each timed group of steps.
      steps_at_once: Number of steps in a group.
    """

    seconds: list[float]
    steps_at_once: int

    def advance(self, steps: int) -> float:
        """Runs steps and returns the seconds per step."""
        ...


def time_configs(
    configs: dict[str, dict], seconds: float, random_images: int | None, with_torch: bool = False
) -> dict[str, dict]:
    """Times the training steps of configs that differ only in their model.

    Args:
      configs: Configs by name.
      seconds: Time to spend on steps of all configs together.
      random_images: Side, in pixels, of random images to use instead of the data set; None uses the data set.
      with_torch: True also times the first config's step in PyTorch, alternating with the others.

    Returns:
      Measurements of each config, by name, then of each form of PyTorch.
    """
    first = next(iter(configs.values()))
    mesh = devices.make_mesh(first["replicas"])
    devices.check_batch_size(first["batch_size"], mesh, first["micro_batches"])
    if random_images is None:
        log_progress(f"loading the data set {first['dataset']['name']}")
        dataset, first = load_data(first)
        examples = dataset.train
    else:
        first = {**first, "dataset": {"mean": (127.5,) * 3, "std": (64.0,) * 3}}
        pixels = np.random.default_rng(0).integers(0, 256, (first["batch_size"], *[random_images] * 2, 3), np.uint8)
        examples = ArrayExamples({"image": pixels})
    batch = next(loop.training_batches(first, examples, 0))
    steps = {}
    for name, config in configs.items():
        log_progress(f"compiling {name}")
        steps[name] = TimedStep({**first, "model": config["model"]}, batch, mesh)
    others = torch_steps(next(iter(steps.values()))) if with_torch else {}
    alternate([*steps.values(), *others.values()], seconds)
    log_progress("timing a large matrix product, for comparison")
    rate = matmul_gigaflop_per_second(first["model"].get("dtype", "float32"))
    # The virtual devices of a CPU share its cores.
    rate *= 1 if jax.default_backend() == "cpu" else mesh.size
    rows = {}
    for name, step in steps.items():
        log_progress(f"timing the parts of {name}")
        rows[name] = row = step.row()
        quantizer = step.quantizer_seconds()
        row["quantiser_share"] = None if quantizer is None else quantizer * 1e3 / row["step_milliseconds"]
        batches = loop.training_batches(first, examples, 1)
        row["data_wait_share"] = None if random_images else step.wait_share(batches, seconds / 4)
        row["matmul_gigaflop_per_second"] = rate
        row["share_of_matmul_rate"] = row["gigaflop_per_second"] / rate
    return rows | {name: time_row(other.seconds) for name, other in others.items()}


def alternate(steps: Sequence[Alternating], seconds: float) -> None:
    """Times steps alternately, a few steps of each at a time, for at least five rounds."""
    deadline = time.perf_counter() + seconds
    with tqdm(total=round(seconds), desc="alternating steps", unit="s", disable=not sys.stderr.isatty()) as bar:
        while (left := deadline - time.perf_counter()) > 0 or len(steps[0].seconds) < 5:
            for step in steps:
                step.seconds.append(step.advance(step.steps_at_once))
            bar.update(min(round(seconds - left), bar.total) - bar.n)
