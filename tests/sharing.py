"""Shares what runs of equal configs trace and compile, so that a test process does it once."""

import contextlib
import functools
import json

import numpy as np
import pytest

from kvae.training import train as story
from kvae.training.evaluate import Evaluator
from kvae.training.parallel import devices
from kvae.training.parallel.devices import Replicas

KEPT = 16
"""Number of results that are kept of each function."""


def shared(function, key_of):
    """Returns a function that remembers its results by `key_of(*arguments)`; a key of None remembers nothing."""
    kept = {}

    @functools.wraps(function)
    def remembered(*arguments, **options):
        key = key_of(*arguments, **options)
        if key is None:
            return function(*arguments, **options)
        if key not in kept:
            if len(kept) == KEPT:
                del kept[next(iter(kept))]
            kept[key] = function(*arguments, **options)
        return kept[key]

    return remembered


def hashable(key):
    """Returns the key, or None if it cannot be hashed: a user's model may have any fields."""
    with contextlib.suppress(TypeError):
        hash(key)
        return key
    return None


def of_init_and_step(config, model, example, mesh, data_variables=()):
    """Equal models, optimisers and shapes have equal functions, unless the data determine variables."""
    if data_variables:
        return None
    shapes = {name: (str(np.asarray(value).dtype), np.shape(value)) for name, value in example.items()}
    fields = {**config["optimizer"], "shapes": shapes}
    fields |= {name: config[name] for name in ("micro_batches", "replicas", "batch_size")}
    if config["optimizer"]["schedule"] != "constant":
        fields["steps"] = config["steps"]
    return hashable((json.dumps(fields, sort_keys=True, default=str), model, mesh))


def of_compiled(replicas, function, *, shared=(), donate=False, run_once=False):
    """Programs differ by function, devices and options; tests may replace `jax` or the options."""
    options = (tuple(shared), donate, run_once, id(devices.jax), str(devices.RUN_ONCE_OPTIONS))
    return hashable((function, replicas.size, replicas.mesh, *options))


def of_evaluation(evaluator, method):
    return hashable((evaluator.model, evaluator.replicas.mesh, evaluator.replicas.count, method, id(devices.jax)))


@contextlib.contextmanager
def shared_programs():
    """Within the block, runs of this process share their programs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(story, "init_and_step", shared(story.init_and_step, of_init_and_step))
        patch.setattr(Replicas, "compiled", shared(Replicas.compiled, of_compiled))
        patch.setattr(Evaluator, "_program", shared(Evaluator._program.__wrapped__, of_evaluation))
        yield
