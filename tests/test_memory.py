"""A run that does not fit into memory is rejected before anything is allocated."""

import jax
import numpy as np
import pytest

import kvae
from kvae.core.errors import InputError
from kvae.models import build
from kvae.training.config.sections import validate_config
from kvae.training.parallel.devices import make_mesh, wrap_memory_errors
from kvae.training.train import init_and_step

IMAGE = {"image": np.zeros((32, 32, 3), np.uint8)}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"batch_size": 10**9}, r"images 14,305\.1 GiB"),
        ({"batch_size": 10**6}, r"the largest activation \d+\.\d GiB"),
        ({"replicas": 10**7}, r"codebooks \d+\.\d GiB"),
        ({"model.channels": 10**6}, r"parameters and optimiser \d+,\d+\.\d GiB"),
        ({"model.quantizer.grid_shape": (256, 256), "model.embedding_dim": 2**20}, r"codebooks \d+\.\d GiB"),
    ],
)
def test_a_run_too_large_names_the_largest_parts(make_config, fields, words):
    config = validate_config(make_config(**fields))
    with pytest.raises(
        InputError, match=rf"a step needs at least .*{words}.* and .* has .* GiB; use a lower batch_size"
    ):
        init_and_step(config, build(config["model"]), IMAGE, make_mesh())


def test_estimate_of_the_state_is_its_size(make_config, monkeypatch):
    config = validate_config(make_config())
    init, _ = init_and_step(config, build(config["model"]), IMAGE, make_mesh())
    state = jax.eval_shape(init, 0)
    size = sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((state.params, state.params, state.optimizer))
    )
    size += sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.collections))
    size += config["batch_size"] * 5 * 32 * 32 * 3
    monkeypatch.setattr("kvae.training.parallel.memory._memory", lambda: (size, "this machine"))
    with pytest.raises(InputError, match="a step needs at least"):  # the activations exceed it
        init_and_step(config, build(config["model"]), IMAGE, make_mesh())
    monkeypatch.setattr("kvae.training.parallel.memory._memory", lambda: (10 * size, "this machine"))
    init_and_step(config, build(config["model"]), IMAGE, make_mesh())


def test_out_of_memory_on_a_device_is_an_input_error():
    with pytest.raises(InputError, match="the memory of the devices does not hold the run"), wrap_memory_errors():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 byte")
    with pytest.raises(jax.errors.JaxRuntimeError), wrap_memory_errors():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kvae.KohonenVQ((2**20, 2)), "has 2,097,152 nodes; it may have 1,048,576 at most"),
        (lambda: kvae.KohonenVQ((1,) * 100), "it must be a tuple of one to 16 integers"),
        (lambda: kvae.ResidualVQ(kvae.KohonenVQ((2, 2)), depth=10**6), "1 or larger and at most 256"),
        (lambda: kvae.ResidualVQ(None), "quantizer is a NoneType; it must have one codebook"),
    ],
)
def test_fields_that_are_too_large_are_rejected(make, message):
    with pytest.raises(InputError, match=message):
        make()
