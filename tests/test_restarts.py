"""Restarts draw one vector for each code, however many parts the batch has."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import kvae
from modules import init
from vectors import vectors

LAYER = kvae.KohonenVQ((32,), "none", restart_below=2.0)
Z = vectors(64, 8)


def started(step=0):
    """Returns variables whose codes are all due to restart."""
    codebook = init(LAYER, jax.random.key(0), Z)["codebook"]
    return {"codebook": {**codebook, "counts": jnp.zeros(32), "sums": jnp.zeros((32, 8)), "step": jnp.int32(step)}}


@functools.partial(jax.jit, static_argnums=2)
def learn_in_parts(variables, z, n_parts, layer=LAYER):
    """Updates the codebook by the added statistics of micro-batches."""
    statistics_of = lambda part: layer.apply(variables, part, train=True, method="quantize").statistics  # noqa: E731
    total = jax.tree.map(lambda leaf: leaf.sum(0), jax.vmap(statistics_of)(z.reshape(n_parts, -1, z.shape[-1])))
    return layer.apply(variables, total, method="update", mutable=["codebook"])[1]


@pytest.mark.parametrize("n_parts", [1, 2, 8])
def test_restarted_codes_are_vectors_of_the_batch(n_parts):
    """Micro-batches of clusters at -5 and 5: a mean of their draws is near 0."""
    z = np.repeat(np.linspace(-5, 5, n_parts) if n_parts > 1 else [5], 64 // n_parts)[:, None] + 0.01 * Z
    z = z.astype(np.float32)
    rows, placed = {row.tobytes() for row in z}, np.zeros(32, bool)
    for t in range(12):  # a code whose draws cannot be told apart waits for the next update
        codebook = jax.device_get(learn_in_parts(started(t), z, n_parts)["codebook"])
        restarted = codebook["counts"] == 2.0
        assert {word.tobytes() for word in codebook["codewords"][restarted]} <= rows
        placed |= restarted
        assert n_parts > 1 or placed.all()
    assert placed.all()


def test_devices_of_shard_map_and_pmap_restart_at_the_same_vectors():
    """In audiocraft (issue 374) each device drew its own, and codebooks drifted apart."""
    layer = LAYER.clone(axis_name="data")
    variables, expected_rows = started(), {row.tobytes() for row in Z}

    def step(variables, z):
        return layer.apply(variables, z, train=True, mutable=["codebook"])[1]["codebook"]

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("data")
    everywhere = jax.tree.map(lambda leaf: jnp.stack([leaf] * 8), variables)
    alone = lambda v, z: jax.tree.map(lambda x: x[None], step(jax.tree.map(lambda x: x[0], v), z))  # noqa: E731
    mapped = jax.jit(jax.shard_map(alone, mesh=mesh, in_specs=(spec, spec), out_specs=spec))
    for codebook in (mapped(everywhere, Z), jax.pmap(step, "data")(everywhere, Z.reshape(8, 8, 8))):
        for leaf in jax.tree.leaves(codebook):
            np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
        placed = np.asarray(codebook["codewords"][0])[codebook["counts"][0] == 2.0]
        assert len(placed) > 8
        assert {row.tobytes() for row in placed} <= expected_rows
