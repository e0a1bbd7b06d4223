"""Times a training step and its parts."""

import math
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from kvae.benchmark.layer_times import layer_seconds
from kvae.benchmark.timing import log_progress, matmul_gigaflop_per_second
from kvae.data import ArrayExamples, pipeline
from kvae.training import loop
from kvae.training import train as training
from kvae.training.config.sections import build_model, load_data
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
        low, median, high = np.percentile(self.seconds, [25, 50, 75])
        memory = self.program.memory_analysis()
        images = self.config["batch_size"] * self.config["replicas"]
        device_memory = jax.local_devices()[0].memory_stats() or {}
        return {
            "step_milliseconds": median * 1e3,
            "step_milliseconds_quartiles": [low * 1e3, high * 1e3],
            "images_per_second": images / median,
            "compile_seconds": self.compile_seconds,
            "model_gigaflop": self.flops / 1e9,
            "gigaflop_per_second": self.flops / median / 1e9,
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


def time_configs(configs: dict[str, dict], seconds: float, random_images: int | None) -> dict[str, dict]:
    """Times the training steps of configs that differ only in their model.

    Args:
      configs: Configs by name.
      seconds: Time to spend on steps of all configs together.
      random_images: Side, in pixels, of random images to use instead of the data set; None uses the data set.

    Returns:
      Measurements of each config, by name.
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
    alternate(list(steps.values()), seconds)
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
    return rows


def alternate(steps: list[TimedStep], seconds: float) -> None:
    """Times steps alternately, a few steps of each at a time, for at least five rounds."""
    deadline = time.perf_counter() + seconds
    with tqdm(total=round(seconds), desc="alternating steps", unit="s", disable=not sys.stderr.isatty()) as bar:
        while (left := deadline - time.perf_counter()) > 0 or len(steps[0].seconds) < 5:
            for step in steps:
                step.seconds.append(step.advance(step.steps_at_once))
            bar.update(min(round(seconds - left), bar.total) - bar.n)
