"""The cost of a training step, and of its parts."""

import math
import sys
import time
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from kvae.benchmark.quantizers import layer_seconds
from kvae.benchmark.timing import matmul_gigaflop_per_second, say
from kvae.data import ArrayExamples, pipeline
from kvae.training import loop
from kvae.training import train as story
from kvae.training.config.sections import build_model, load_data
from kvae.training.parallel import devices
from kvae.training.parallel.devices import Replicas

SHORTEST_SECONDS = 0.05
"""Steps are timed in groups of at least this long, or what is measured of a small one is its start."""


class Subject:
    """A training step that is measured.

    Args:
      config: of the run.
      batch: a global batch, as `loop.training_batches` has it.
      mesh: the devices.
    """

    def __init__(self, config: dict, batch: dict[str, np.ndarray], mesh: Mesh):
        self.config, self.mesh, self.replicas = config, mesh, Replicas(config["replicas"], mesh)
        self.model = build_model(config)
        example = {name: array[0, 0] for name, array in batch.items()}
        init, step = story.functions_of(config, self.model, example, mesh)
        self.batch = next(loop.on_devices(iter([batch]), self.replicas))
        self.groups = self.replicas.program(init, run_once=True)(story.seeds(config, self.replicas))
        lowered = self.replicas.compiled(step, donate=True).lower(self.groups[0], self.batch[0])
        started = time.perf_counter()
        self.program = lowered.compile()
        self.compile_seconds = time.perf_counter() - started
        self.flops = len(self.groups) * flops(lowered, self.program, mesh.size)
        self.seconds = []
        self.advance(1)
        self.steps_at_once = max(1, math.ceil(SHORTEST_SECONDS / self.advance(1)))

    def advance(self, steps: int, batch=None) -> float:
        """Takes some steps; returns the seconds that one of them took."""
        batch, started = self.batch if batch is None else batch, time.perf_counter()
        for _ in range(steps):
            self.groups = [self.program(*of_group) for of_group in zip(self.groups, batch, strict=True)]
        jax.block_until_ready(self.groups)
        return (time.perf_counter() - started) / steps

    def quantizer_seconds(self) -> float | None:
        """Seconds of the quantisers of one step, each by itself on vectors of a normal distribution."""
        total = 0.0
        for name, layer in getattr(self.model, "quantizers", {}).items():
            height, width = (size // self.model.code_strides[name] for size in self.batch[0]["image"].shape[-3:-1])
            shape = (self.config["batch_size"], height, width, self.model.embedding_dim)
            z = np.random.default_rng(0).standard_normal(shape, np.float32)
            z = jax.device_put(z, devices.shared_batch_sharding(self.mesh))
            total += self.config["replicas"] * layer_seconds(layer, z)[0]
        return total or None

    def wait_share(self, batches: Iterator[dict[str, np.ndarray]], seconds: float) -> float:
        """The share of the time that the steps wait for batches, which are made in the background as in training."""
        waits, steps = [], []
        with pipeline.prefetch(loop.on_devices(batches, self.replicas), loop.BATCHES_AHEAD) as batches:
            deadline = time.perf_counter() + seconds
            while time.perf_counter() < deadline or len(steps) < 3:
                started = time.perf_counter()
                batch = next(batches)
                waits.append(time.perf_counter() - started)
                steps.append(self.advance(1, batch))
        # The first batch is not made while a step runs.
        return sum(waits[1:]) / (sum(waits[1:]) + sum(steps[1:]))

    def row(self) -> dict:
        """Everything that was measured, by name."""
        low, median, high = np.percentile(self.seconds, [25, 50, 75])
        memory = self.program.memory_analysis()
        images = self.config["batch_size"] * self.config["replicas"]
        measured = jax.local_devices()[0].memory_stats() or {}
        return {
            "step_milliseconds": median * 1e3,
            "step_milliseconds_quartiles": [low * 1e3, high * 1e3],
            "images_per_second": images / median,
            "compile_seconds": self.compile_seconds,
            "model_gigaflop": self.flops / 1e9,
            "gigaflop_per_second": self.flops / median / 1e9,
            "state_and_batch_mebibytes": memory.argument_size_in_bytes / 2**20,
            "temporary_mebibytes": memory.temp_size_in_bytes / 2**20,
            "peak_mebibytes": measured.get("peak_bytes_in_use", memory_peak(memory)) / 2**20,
        }


def flops(lowered, program, device_count: int) -> float:
    """Floating-point operations of a program on all devices. On a GPU only what is compiled, for one device, tells."""
    costs = lowered.cost_analysis()
    return costs["flops"] if costs else program.cost_analysis()["flops"] * device_count


def memory_peak(memory) -> int:
    """What a program holds at most, by its compiler."""
    sizes = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return sizes + memory.temp_size_in_bytes


def measure(configs: dict[str, dict], seconds: float, random_images: int | None) -> dict[str, dict]:
    """What was measured of some configs that differ in their model only.

    Args:
      configs: by name.
      seconds: how long steps are timed, all configs together.
      random_images: side of random images that take the place of the data set; None for the data set itself.
    """
    shared = next(iter(configs.values()))
    mesh = devices.make_mesh(shared["replicas"])
    devices.check_batch_size(shared["batch_size"], mesh, shared["micro_batches"])
    if random_images is None:
        say(f"loading the data set {shared['dataset']['name']}")
        dataset, shared = load_data(shared)
        examples = dataset.train
    else:
        shared = {**shared, "dataset": {"mean": (127.5,) * 3, "std": (64.0,) * 3}}
        pixels = np.random.default_rng(0).integers(0, 256, (shared["batch_size"], *[random_images] * 2, 3), np.uint8)
        examples = ArrayExamples({"image": pixels})
    batch = next(loop.training_batches(shared, examples, 0))
    subjects = {}
    for name, config in configs.items():
        say(f"compiling {name}")
        subjects[name] = Subject({**shared, "model": config["model"]}, batch, mesh)
    alternate(list(subjects.values()), seconds)
    say("a large matrix product, for comparison")
    rate = matmul_gigaflop_per_second(shared["model"].get("dtype", "float32"))
    # The virtual devices of a CPU share its cores.
    rate *= 1 if jax.default_backend() == "cpu" else mesh.size
    rows = {}
    for name, subject in subjects.items():
        say(f"the parts of {name}")
        rows[name] = row = subject.row()
        quantizer = subject.quantizer_seconds()
        row["quantiser_share"] = None if quantizer is None else quantizer * 1e3 / row["step_milliseconds"]
        batches = loop.training_batches(shared, examples, 1)
        row["data_wait_share"] = None if random_images else subject.wait_share(batches, seconds / 4)
        row["matmul_gigaflop_per_second"] = rate
        row["of_matmul_rate"] = row["gigaflop_per_second"] / rate
    return rows


def alternate(subjects: list[Subject], seconds: float) -> None:
    """Times the subjects in turns, a few steps each."""
    deadline = time.perf_counter() + seconds
    with tqdm(total=round(seconds), desc="steps in turns", unit="s", disable=not sys.stderr.isatty()) as bar:
        while (left := deadline - time.perf_counter()) > 0 or len(subjects[0].seconds) < 5:
            for subject in subjects:
                subject.seconds.append(subject.advance(subject.steps_at_once))
            bar.update(min(round(seconds - left), bar.total) - bar.n)
