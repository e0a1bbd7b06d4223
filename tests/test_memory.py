"""A run that cannot fit in memory is refused before anything is allocated."""

import jax
import numpy as np
import pytest

import kvae
from kvae.core.errors import InputError
from kvae.models import build
from kvae.training import train as story
from kvae.training.config.sections import validate_config
from kvae.training.parallel.devices import Replicas, make_mesh, wrap_memory_errors
from kvae.training.train import init_and_step

IMAGE = {"image": np.zeros((32, 32, 3), np.uint8)}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"batch_size": 10**9}, r"images 14,305\.1 GiB"),
        ({"batch_size": 10**6}, r"the largest activation \d+\.\d GiB"),
        ({"replicas": 4096, "model.embedding_dim": 2**16}, r"codebooks \d+\.\d GiB"),
        ({"model.channels": 10**6}, r"parameters and optimiser \d+,\d+\.\d GiB"),
        ({"model.quantizer.grid_shape": (256, 256), "model.embedding_dim": 2**20}, r"codebooks \d+\.\d GiB"),
    ],
)
def test_the_message_lists_what_takes_the_memory(make_config, fields, words):
    config = validate_config(make_config(**fields))
    with pytest.raises(
        InputError, match=rf"a step needs at least .*{words}.* but .* has .* GiB; use a lower batch_size"
    ):
        init_and_step(config, build(config["model"]), IMAGE, make_mesh())


def test_the_estimate_counts_the_state_exactly(make_config, monkeypatch):
    config = validate_config(make_config())
    init, _ = init_and_step(config, build(config["model"]), IMAGE, make_mesh())
    state = jax.eval_shape(init, 0)
    gradients = state.params
    leaves = jax.tree.leaves((state.params, gradients, state.optimizer, state.collections))
    counted = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) + config["batch_size"] * 5 * 32 * 32 * 3
    monkeypatch.setattr("kvae.training.parallel.memory.available_memory", lambda: (counted, "this machine"))
    with pytest.raises(InputError, match="a step needs at least"):  # the activations come on top
        init_and_step(config, build(config["model"]), IMAGE, make_mesh())
    monkeypatch.setattr("kvae.training.parallel.memory.available_memory", lambda: (10 * counted, "this machine"))
    init_and_step(config, build(config["model"]), IMAGE, make_mesh())


def test_the_memory_check_shares_its_trace_with_the_run(make_config, monkeypatch):
    config, traced = validate_config(make_config()), []
    initial_state = story.initial_state
    monkeypatch.setattr(story, "initial_state", lambda *arguments: traced.append(1) or initial_state(*arguments))
    mesh = make_mesh(1, jax.devices()[:1])
    init, _ = init_and_step(config, build(config["model"]), IMAGE, mesh)
    Replicas(1, mesh).compiled(init, run_once=True).trace(np.zeros(1, np.int32))
    assert len(traced) == 1


def test_a_full_device_is_reported_in_one_line():
    with pytest.raises(InputError, match="the run does not fit in the devices' memory"), wrap_memory_errors():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 byte")
    with pytest.raises(jax.errors.JaxRuntimeError), wrap_memory_errors():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kvae.KohonenVQ((2**20, 2)), "has 2,097,152 nodes; it must have at most 1,048,576"),
        (lambda: kvae.KohonenVQ((1,) * 100), "it must be a tuple of 1 to 16 integers"),
        (lambda: kvae.ResidualVQ(kvae.KohonenVQ((2, 2)), depth=10**6), "from 1 to 256"),
        (lambda: kvae.ResidualVQ(None), "quantizer is None; it must be a linen layer"),
    ],
)
def test_grids_and_stacks_have_a_largest_size(make, message):
    with pytest.raises(InputError, match=message):
        make()
