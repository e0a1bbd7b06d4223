"""Restarts draw one vector for each code, however many parts the batch has."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import kvae
from kvae import kohonen
from modules import init
from vectors import vectors

LAYER = kvae.KohonenVQ((32,), "none", restart_below=2.0)
Z = vectors(64, 8)


def started(step=0):
    """Returns variables whose codes are all due to restart."""
    codebook = init(LAYER, jax.random.key(0), Z)["codebook"]
    return {"codebook": {**codebook, "counts": jnp.zeros(32), "sums": jnp.zeros((32, 8)), "step": jnp.int32(step)}}


@functools.partial(jax.jit, static_argnums=(2, 3))
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


STACKS = {
    "residual": lambda part, **fields: kvae.ResidualVQ(part, depth=2, **fields),
    "grouped": lambda part, **fields: kvae.GroupedVQ(part, groups=2, **fields),
}


def vectors_of_parts(name, variables, z):
    """Returns the vectors that each of the two parts of a stack quantises, at any position: [2, n, d]."""
    if name == "grouped":
        return np.stack(np.split(z, 2, axis=-1))
    first = next(iter(variables["codebook"].values()))["codewords"]
    return np.stack([z, z - first[kohonen.nearest_code(z, first)]])


@pytest.mark.parametrize(("name", "codebooks"), [("residual", "separate"), ("grouped", "shared")])
def test_parts_of_a_stack_restart_at_the_same_vectors_on_all_devices(name, codebooks):
    layer = STACKS[name](LAYER.clone(axis_name="data"), codebooks=codebooks)
    variables = init(layer, jax.random.key(0), Z)
    due = {"counts": jnp.zeros_like, "sums": jnp.zeros_like}
    codebook = {
        part: {leaf: due.get(leaf, jnp.asarray)(value) for leaf, value in state.items()}
        for part, state in variables["codebook"].items()
    }
    variables = {"codebook": codebook}

    def on_a_device(z):
        updated = layer.apply(variables, z, train=True, mutable=["codebook"])[1]["codebook"]
        return jax.tree.map(lambda leaf: leaf[None], updated)

    mesh, spec = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,)), PartitionSpec("data")
    on_devices = jax.shard_map(on_a_device, mesh=mesh, in_specs=spec, out_specs=spec)
    in_parts = learn_in_parts(variables, Z, 8, STACKS[name](LAYER, codebooks=codebooks))["codebook"]
    rows = vectors_of_parts(name, jax.device_get(variables), Z)
    for i, (part, states) in enumerate(sorted(jax.device_get(jax.jit(on_devices)(Z)).items())):
        for leaf in states.values():
            np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
        expected = np.concatenate(rows) if codebooks == "shared" else rows[i]
        for state in (jax.tree.map(lambda leaf: leaf[0], states), jax.device_get(in_parts)[part]):
            placed = state["codewords"][state["counts"] == 2.0]
            assert len(placed) > 8
            assert np.abs(expected[:, None] - placed).max(axis=-1).min(axis=0).max() < 1e-6
