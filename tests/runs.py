"""Trains, reads and compares runs."""

import functools
import json

import jax
import numpy as np

from kvae import models
from kvae.training import loop
from kvae.training import train as story
from kvae.training.config.sections import validate_config
from kvae.training.parallel import devices
from kvae.training.parallel.devices import Replicas
from kvae.training.workdir.checkpoint import Checkpoints
from kvae.training.workdir.journal import read_metrics

TINY_ARGUMENTS = [
    "--config.model.residual_blocks=0", "--config.model.channels=8", "--config.model.residual_channels=4",
    "--config.optimizer.name=adam", "--config.optimizer.schedule=constant",
]  # fmt: skip
"""Arguments that make a VQ-VAE cheap to compile, with a schedule that does not depend on the number of steps."""

RATES = ("steps_per_second", "images_per_second")


def run(config, workdir, devices=1):
    """Trains on several devices; returns the step that was reached."""
    return story.train(config, str(workdir), jax.devices()[:devices])


def final_state(workdir, step=None):
    """Returns the state of a checkpoint, the newest by default, as nested dicts of NumPy arrays."""
    checkpoints = Checkpoints(str(workdir), read_only=True)
    state = checkpoints.restore_as_saved(checkpoints.steps()[-1] if step is None else step)
    checkpoints.close()
    return state


def rows(workdir):
    """Returns the rows of metrics.jsonl, without the rates."""
    return [{k: v for k, v in row.items() if k not in RATES} for row in read_metrics(str(workdir))]


def assert_same_run(one, other):
    """Asserts that all leaves of the last state, and all rows, are equal bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, final_state(one), final_state(other))
    assert rows(one) == rows(other)


def files_of(folder):
    """Returns the size and modification time of every file in a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}


def images(count, seed):
    """Returns random images, uint8 [count, 32, 32, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def programs(config, device_count, count=1):
    """Returns the compiled programs of `count` replicas on several devices; each config is compiled once.

    Returns:
      (replicas, init, advance): `init(seeds)` makes the first states; `advance(groups, images)` takes a step with
      images [count, b, h, w, 3].
    """
    return _programs(json.dumps(config), device_count, count)


@functools.cache
def _programs(config, device_count, count):
    config = validate_config(json.loads(config))
    model = models.build(config["model"], mean=(120.0,) * 3, std=(60.0,) * 3)
    replicas = Replicas(count, devices.make_mesh(count, jax.devices()[:device_count]))
    init, step = story.init_and_step(config, model, {"image": np.zeros((32, 32, 3), np.uint8)}, replicas.mesh)
    init, step = replicas.program(init, run_once=True), replicas.program(step, donate=True)

    def advance(groups, batch):
        return step(groups, next(loop.on_devices(iter([{"image": batch}]), replicas)))

    return replicas, lambda seeds: init(replicas.split(np.asarray(seeds, np.int32))), advance
