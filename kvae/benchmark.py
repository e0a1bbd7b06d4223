"""What a training step costs, and where it goes.

    python -m kvae.benchmark --config=configs/photos_vqvae.py [--compare neighborhood=none] [--config.FIELD=VALUE]
    python -m kvae.benchmark --scaling

The step is that of training, compiled in the same way. The quantiser (lookup, statistics, update) is also timed by
itself, and so is a matrix product, for the rate that the device reaches. `--compare` puts the config beside itself with
one field of the model changed, step by step in turns, so that whatever else the machine does falls on both.

`--scaling` on two CPU cores (jax 0.10.2, commit 958b940): time and memory are linear in N and in K.

                 milliseconds   picoseconds per distance   temporary memory, of one N x K array
    4,096 x 512          6.7                      3,190                                   0.42
    16,384 x 512        27.3                      3,254                                   0.26
    65,536 x 512       118.6                      3,536                                   0.25
    262,144 x 512      427.2                      3,183                                   0.25
    4,096 x 2,048       28.7                      3,421                                   0.11
    4,096 x 8,192       99.8                      2,973                                   0.03
    4,096 x 65,536     1,077                      4,011                                   0.03
"""

import argparse
import json
import math
import pathlib
import sys
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from kvae import main, models
from kvae.data import ArrayExamples, pipeline
from kvae.errors import InputError
from kvae.models.autoencoder import Autoencoder
from kvae.models.quantizers import KohonenVQ
from kvae.training import devices as meshes
from kvae.training import loop as train
from kvae.training.config import check_config
from kvae.training.journal import write_atomically

SHORTEST_SECONDS = 0.05
"""Steps are timed in groups of at least this long, or what is measured of a small one is its start."""

STARTED = time.perf_counter()

SCALES = [(4_096, 512), (16_384, 512), (65_536, 512), (262_144, 512), (4_096, 2_048), (4_096, 8_192), (4_096, 65_536)]
"""The (N, K) of `--scaling`."""


class Subject:
    """A training step that is measured.

    Args:
      config: of the run.
      images: a global batch, as `train.training_batches` has it.
      mesh: the devices.
    """

    def __init__(self, config: dict, images: np.ndarray, mesh: Mesh):
        replicas = config["replicas"]
        self.config, self.mesh = config, mesh
        self.model = models.build(config["model"], mean=config["dataset"]["mean"], std=config["dataset"]["std"])
        self.sharding = meshes.batch_sharding(mesh, replicas)
        self.image_shape = images.shape[-3:]
        self.batch = meshes.to_devices(self.sharding, images)
        optimizer = train.make_optimizer(**config["optimizer"])
        init, step = train.make_programs(config, self.model, optimizer, mesh, self.image_shape)
        seeds = np.arange(replicas, dtype=np.int32) + config["seed"]
        self.state = init(seeds if replicas > 1 else seeds[0])
        lowered = step.lower(self.state, self.batch)
        self.flops = lowered.cost_analysis()["flops"]
        started = time.perf_counter()
        self.program = lowered.compile()
        self.compile_seconds = time.perf_counter() - started
        self.seconds = []
        self.advance(1)
        self.group = max(1, math.ceil(SHORTEST_SECONDS / self.advance(1)))

    def advance(self, steps: int, batch=None) -> float:
        """Takes some steps; returns the seconds that one of them took."""
        started = time.perf_counter()
        for _ in range(steps):
            self.state = self.program(self.state, self.batch if batch is None else batch)
        jax.block_until_ready(self.state)
        return (time.perf_counter() - started) / steps

    def quantizer_seconds(self) -> float | None:
        """Seconds of the quantisers of one step, each by itself on vectors of a normal distribution."""
        if not isinstance(self.model, Autoencoder):
            return None
        total = 0.0
        for name, layer in self.model.quantizers.items():
            stride = self.model.code_strides[name]
            shape = (self.config["batch_size"], *(n // stride for n in self.image_shape[:2]), self.model.codeword_size)
            z = np.random.default_rng(0).standard_normal(shape, np.float32)
            z = jax.device_put(z, meshes.batch_sharding(self.mesh, 1))
            total += self.config["replicas"] * layer_seconds(layer, z)[0]
        return total

    def wait_share(self, batches: Iterator[np.ndarray], seconds: float) -> float:
        """The share of the time that the steps wait for batches, which are made in the background as in training."""
        batches = (meshes.to_devices(self.sharding, images) for images in batches)
        waits, steps = [], []
        with pipeline.prefetch(batches, train.BATCHES_AHEAD) as batches:
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


def memory_peak(memory) -> int:
    """What a program holds at most, by its compiler."""
    sizes = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return sizes + memory.temp_size_in_bytes


def median_seconds(function: Callable, *arguments, seconds: float = 1.0) -> float:
    """The median time of a jitted function, after a first call."""
    jax.block_until_ready(function(*arguments))
    taken, deadline = [], time.perf_counter() + seconds
    while time.perf_counter() < deadline or len(taken) < 3:
        started = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        taken.append(time.perf_counter() - started)
    return float(np.median(taken))


def layer_seconds(layer, z: jax.Array) -> tuple[float, int]:
    """Seconds of a quantiser's training step on z [..., d], and its temporary memory in bytes."""
    variables = layer.init(jax.random.key(0), jnp.zeros((1, z.shape[-1])))

    def step(variables, z):
        out, updated = layer.apply(variables, z, train=True, mutable=["codebook"])
        return out.codes, out.loss, updated

    program = jax.jit(step, compiler_options=meshes.compiler_options()).lower(variables, z).compile()
    return median_seconds(program, variables, z), program.memory_analysis().temp_size_in_bytes


def matmul_gigaflop_per_second(dtype) -> float:
    """The rate of a large matrix product on one device, or on the whole of a CPU, at JAX's default precision."""
    size = 2_048 if jax.default_backend() == "cpu" else 8_192
    a = jnp.ones((size, size), dtype)
    return 2 * size**3 / median_seconds(jax.jit(jnp.matmul), a, a, seconds=0.5) / 1e9


def scaling() -> dict[str, dict]:
    """Time and memory of the quantiser against N and K, with d = 64 and a hard neighbourhood."""
    rows = {}
    for count, size in SCALES:
        say(f"N = {count:,}, K = {size:,}")
        z = jnp.asarray(np.random.default_rng(0).standard_normal((count, 64), np.float32))
        side = 2 ** (int(math.log2(size)) // 2)
        seconds, temporary = layer_seconds(KohonenVQ((side, size // side)), z)
        rows[f"{count:,} x {size:,}"] = {
            "milliseconds": seconds * 1e3,
            "picoseconds_per_distance": seconds * 1e12 / (count * size),
            "temporary_mebibytes": temporary / 2**20,
            "of_one_N_x_K_array": temporary / (4 * count * size),
        }
    return rows


def say(text: str) -> None:
    """Shows what is being done, and when it began."""
    print(f"{time.perf_counter() - STARTED:5.1f} s  {text}", file=sys.stderr, flush=True)


def table(rows: dict[str, dict]) -> str:
    """Columns by name, each a dict of numbers, as aligned text."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [
        ["", *(row.replace("_", " ") for row in rows)],
        *([name.replace("_", " "), *(shown(row.get(name)) for row in rows.values())] for name in names),
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(rows) + 1)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def shown(value) -> str:
    """A number in four digits, a range of numbers, or a dash where there is none."""
    if value is None:
        return "-"
    if isinstance(value, (list, tuple)):
        return " - ".join(shown(part) for part in value)
    return f"{value:,.0f}" if abs(value) >= 1_000 or isinstance(value, int) else f"{value:.4g}"


def measure(configs: dict[str, dict], seconds: float, random_images: int | None) -> dict[str, dict]:
    """What was measured of some configs that differ in their model only.

    Args:
      configs: by name.
      seconds: how long steps are timed, all configs together.
      random_images: side of random images that take the place of the data set; None for the data set itself.
    """
    shared = next(iter(configs.values()))
    mesh = meshes.make_mesh(shared["replicas"])
    meshes.check_batch_size(shared["batch_size"], mesh, shared["micro_batches"])
    if random_images is None:
        say(f"loading the data set {shared['dataset']['name']}")
        dataset, shared = train.load_data(shared)
        examples = dataset.train
    else:
        shared = {**shared, "dataset": {"mean": (127.5,) * 3, "std": (64.0,) * 3}}
        pixels = np.random.default_rng(0).integers(0, 256, (shared["batch_size"], *[random_images] * 2, 3), np.uint8)
        examples = ArrayExamples({"image": pixels})
    images = next(train.training_batches(shared, examples, 0))
    subjects = {}
    for name, config in configs.items():
        say(f"compiling {name}")
        subjects[name] = Subject({**shared, "model": config["model"]}, images, mesh)
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
        batches = train.training_batches(shared, examples, 1)
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
                subject.seconds.append(subject.advance(subject.group))
            bar.update(min(round(seconds - left), bar.total) - bar.n)


def parse(argv: list[str]) -> tuple[argparse.Namespace, dict[str, dict]]:
    """The benchmark's own options, and the configs by name; those are read as the training program reads them."""
    parser = argparse.ArgumentParser(
        "kvae.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--compare", metavar="NAME=VALUE", help="a field of the model, and its other value")
    parser.add_argument("--json", metavar="FILE", help="writes what was measured there, too")
    parser.add_argument("--seconds", type=float, default=20, help="how long steps are timed (20)")
    parser.add_argument("--random-images", type=int, metavar="SIDE", help="instead of the config's data set")
    parser.add_argument("--scaling", action="store_true", help="the quantiser by itself against N and K; no config")
    options, rest = parser.parse_known_args(argv)
    if options.scaling:
        return options, {}
    config, workdir, _ = main.parse(rest)
    name = pathlib.Path(workdir).name
    configs = {name: config}
    if options.compare:
        if "=" not in options.compare:
            raise InputError(f"--compare={options.compare}; it must be a field of the model and a value, name=value")
        configs[options.compare] = main.parse([*rest, f"--config.model.{options.compare}"])[0]
    for config in configs.values():
        check_config(config)
    return options, configs


def benchmark(argv: list[str]) -> int:
    """Runs the program; returns its exit status."""
    try:
        options, configs = parse(argv)
        rows = scaling() if options.scaling else measure(configs, options.seconds, options.random_images)
    except InputError as error:
        print(f"kvae: {error}", file=sys.stderr)
        return 2
    result = {"device": jax.devices()[0].device_kind, "devices": jax.device_count(), "jax": jax.__version__}
    result |= {"rows": rows}
    if options.scaling:
        measures = next(iter(rows.values()))
        print(table({measure: {label: row[measure] for label, row in rows.items()} for measure in measures}))
    else:
        print(table(rows))
    if len(configs) == 2:
        one, other = (row["step_milliseconds"] for row in rows.values())
        result["ratio_of_medians"] = one / other
        print(f"ratio of medians, {' / '.join(rows)}: {one / other:.3f}")
    say(f"done on {result['devices']} x {result['device']}, jax {jax.__version__}")
    if options.json:
        try:
            write_atomically(pathlib.Path(options.json), json.dumps(result, indent=2) + "\n")
        except OSError as error:
            print(f"kvae: --json={options.json} cannot be written: {error.strerror}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(benchmark(sys.argv[1:]))
