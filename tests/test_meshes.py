"""Layers on device meshes, with their traffic, and exported for any batch size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import kvae
from compiled import collectives
from kvae import kohonen, models
from kvae.som import blocks
from kvae.som.metrics import METRICS
from kvae.training.parallel.devices import Replicas, make_mesh
from modules import apply, init

SMALL = {"name": "vqvae", "channels": 8, "residual_channels": 4, "residual_blocks": 0, "embedding_dim": 8}


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
def test_devices_exchange_the_statistics_only(kind):
    """K (d + 1) floats and a few scalars cross the devices. `jax.make_mesh` makes Explicit axes by default."""
    layer, size, dimension = kvae.KohonenVQ((4, 8)), 32, 16
    z = jax.random.normal(jax.random.key(0), (64, 5, 5, dimension))
    variables = init(layer, jax.random.key(1), z)
    expected, moved = apply(layer, variables, z, train=True, mutable=["codebook"])
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(z, NamedSharding(mesh, PartitionSpec("data")))
        everywhere = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
        step = jax.jit(lambda v, z: apply(layer, v, z, train=True, mutable=["codebook"]))
        out, updated = step(everywhere, sharded)
        text = step.lower(everywhere, sharded).compile().as_text()
        assert jax.typeof(out.quantized).sharding.spec[0] == ("data" if kind == AxisType.Explicit else None)
    np.testing.assert_array_equal(out.codes, expected.codes)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), jax.device_get(updated), moved)
    traffic = sum(sum(sizes) for _, sizes in collectives(text))
    assert size * (dimension + 1) <= traffic <= size * (dimension + 1) + 2 * size + 64


def test_lookup_in_chunks_under_explicit_axes(monkeypatch):
    monkeypatch.setitem(kohonen.SCORES_PER_CHUNK, "cpu", 64 * 32)
    z = np.random.default_rng(0).standard_normal((1024, 8)).astype(np.float32)
    words = np.random.default_rng(1).standard_normal((32, 8)).astype(np.float32)
    alone = kohonen.nearest_code(jnp.asarray(z), jnp.asarray(words))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(z, NamedSharding(mesh, PartitionSpec("data")))
        everywhere = jax.device_put(words, NamedSharding(mesh, PartitionSpec()))
        np.testing.assert_array_equal(jax.jit(kohonen.nearest_code)(sharded, everywhere), alone)


@pytest.mark.parametrize(
    "quantizer",
    [
        {"name": "kohonen", "grid_shape": (4, 4)},
        {"name": "fsq", "levels": (4, 3)},
        {"name": "residual", "quantizer": {"name": "kohonen", "grid_shape": (4, 4)}, "depth": 2},
    ],
)
def test_exported_encoder_takes_any_batch_size(quantizer):
    model = models.build({**SMALL, "quantizer": quantizer})
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    variables = init(model, jax.random.key(0), images[:1])
    (b,) = export.symbolic_shape("b")
    encode = jax.jit(lambda images: apply(model, variables, images, method="encode"))
    exported = export.export(encode, platforms=("cpu", "cuda", "tpu"))(jax.ShapeDtypeStruct((b, 16, 16, 3), jnp.uint8))
    again = export.deserialize(exported.serialize())
    for count in (1, 6):
        expected = apply(model, variables, images[:count], method="encode")["codebook"]
        np.testing.assert_array_equal(again.call(images[:count])["codebook"], expected)


def is_done(result):
    return all(array.is_ready() for array in jax.tree.leaves(result))


def test_training_programs_on_cpus_end_before_the_next_one():
    """The collectives of two concurrent programs can deadlock there, and XLA then aborts the process."""
    replicas = Replicas(1, make_mesh(1))
    slow = replicas.program(lambda x: jax.lax.fori_loop(0, 20, lambda _, x: jnp.tanh(x @ x), x))
    groups = replicas.split(np.ones((1, 300, 300), np.float32))
    assert is_done(slow(slow(groups)))


def test_maps_on_cpus_end_a_program_before_the_next_one():
    rng = np.random.default_rng(0)
    block = blocks.to_devices(rng.normal(size=(20_000, 16)).astype(np.float32), np.ones(20_000))
    codewords, metric = blocks.replicate(rng.normal(size=(256, 16)).astype(np.float32)), METRICS["euclidean"]
    for _ in range(2):
        assert is_done(block.sums(codewords, metric))
        assert is_done(block.assignments(codewords, kvae.grids.Plane((16, 16)), metric))
