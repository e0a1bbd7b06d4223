"""Times a training step and its parts."""

import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from kvae.benchmark.layer_times import layer_seconds
from kvae.benchmark.timing import time_row
from kvae.data import pipeline
from kvae.training import loop
from kvae.training import train as training
from kvae.training.config.sections import build_model
from kvae.training.parallel import devices
from kvae.training.parallel.devices import ReplicaGroups, Replicas

SHORTEST_SECONDS = 0.05
"""Steps are timed in groups of at least this duration, so that the time to dispatch short steps does not count."""


class TimedStep:
    """A compiled training step with its state.

    Args:
      config: The config of the run.
      batch: A global batch from `loop.training_batches`.
      mesh: The devices.

    Attributes:
      seconds: Seconds per step of each timed group of steps; `alternate` appends to it.
    """

    def __init__(self, config: dict[str, Any], batch: dict[str, np.ndarray], mesh: Mesh):
        self.config, self.mesh, self.replicas = config, mesh, Replicas(config["replicas"], mesh)
        self.model = build_model(config)
        example = {name: array[0, 0] for name, array in batch.items()}
        init, step = training.init_and_step(config, self.model, example, mesh)
        self.batch = next(loop.on_devices(iter([batch]), self.replicas))
        self.groups = self.replicas.program(init, run_once=True)(training.seeds(config, self.replicas))
        lowered = self.replicas.compiled(step, donate=True).lower(self.groups[0], self.batch[0])
        started = time.perf_counter()
        self.program = lowered.compile()
        self.compile_seconds = time.perf_counter() - started
        self.flops = len(self.groups) * count_flops(lowered, self.program, mesh.size)
        self.seconds: list[float] = []
        self.advance(1)
        self.steps_at_once = max(1, math.ceil(SHORTEST_SECONDS / self.advance(1)))

    def advance(self, steps: int, batch: ReplicaGroups | None = None) -> float:
        """Runs training steps and returns the seconds per step.

        Args:
          steps: Number of steps.
          batch: A batch on the devices; by default the batch of the constructor.
        """
        batch, started = self.batch if batch is None else batch, time.perf_counter()
        for _ in range(steps):
            self.groups = [self.program(*arguments) for arguments in zip(self.groups, batch, strict=True)]
        jax.block_until_ready(self.groups)
        return (time.perf_counter() - started) / steps

    def loss(self) -> float:
        """Runs one training step and returns the loss before it."""
        before = self.groups[0].metric_sums.metrics["loss"].sum()
        self.advance(1)
        return float(self.groups[0].metric_sums.metrics["loss"].sum() - before)

    def quantizer_seconds(self) -> float | None:
        """Returns the seconds of one step's quantisers, each timed alone; None if the model has no quantisers."""
        total = 0.0
        for name, layer in getattr(self.model, "quantizers", {}).items():
            height, width = (size // self.model.code_strides[name] for size in self.batch[0]["image"].shape[-3:-1])
            shape = (self.config["batch_size"], height, width, self.model.embedding_dim)
            z = np.random.default_rng(0).standard_normal(shape, np.float32)
            z = jax.device_put(z, devices.shared_batch_sharding(self.mesh))
            total += self.config["replicas"] * layer_seconds(layer, z)[0]
        return total or None

    def wait_share(self, batches: Iterator[dict[str, np.ndarray]], seconds: float) -> float:
        """Returns the share of time spent waiting for batches, which are made in the background as in training.

        Args:
          batches: Global batches.
          seconds: Time to measure for; at least three steps are run.
        """
        waits, steps = [], []
        with pipeline.prefetch(loop.on_devices(batches, self.replicas), loop.BATCHES_AHEAD) as batches:
            deadline = time.perf_counter() + seconds
            while time.perf_counter() < deadline or len(steps) < 3:
                started = time.perf_counter()
                batch = next(batches)
                waits.append(time.perf_counter() - started)
                steps.append(self.advance(1, batch))
        # The first batch does not count, because no step runs while it is made.
        return sum(waits[1:]) / (sum(waits[1:]) + sum(steps[1:]))

    def row(self) -> dict[str, Any]:
        """Returns all measurements by name, with their units."""
        times = time_row(self.seconds)
        seconds = times["step_milliseconds"] / 1e3
        memory = self.program.memory_analysis()
        images = self.config["batch_size"] * self.config["replicas"]
        device_memory = jax.local_devices()[0].memory_stats() or {}
        return {
            **times,
            "images_per_second": images / seconds,
            "compile_seconds": self.compile_seconds,
            "model_gigaflop": self.flops / 1e9,
            "gigaflop_per_second": self.flops / seconds / 1e9,
            "state_and_batch_mebibytes": memory.argument_size_in_bytes / 2**20,
            "temporary_mebibytes": memory.temp_size_in_bytes / 2**20,
            "peak_mebibytes": device_memory.get("peak_bytes_in_use", program_peak_bytes(memory)) / 2**20,
        }


def count_flops(lowered: jax.stages.Lowered, program: jax.stages.Compiled, device_count: int) -> float:
    """Returns the floating-point operations of a program on all devices.

    On a GPU only the compiled program has a cost analysis, and it covers one device.
    """
    costs = lowered.cost_analysis()
    return costs["flops"] if costs else program.cost_analysis()["flops"] * device_count


def program_peak_bytes(memory: Any) -> int:
    """Returns the peak memory of a program in bytes, from the compiler's `memory_analysis`."""
    sizes = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return sizes + memory.temp_size_in_bytes
