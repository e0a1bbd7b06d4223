"""The layers for Flax NNX: they are the linen layers, in every transformation, in graph mode and in tree mode."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import kvae
from kvae.core.errors import InputError

Z = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)
MODES = [pytest.param({"graph": on, "graph_updates": on}, id="graph" if on else "tree") for on in (True, False)]


def make(seed=0, **fields):
    return kvae.nnx.KohonenVQ(16, grid_shape=(4, 8), rngs=nnx.Rngs(seed), **fields)


def steps(layer):
    return np.asarray(layer.codebook["step"].get_value())


class Model(nnx.Module):
    def __init__(self, rngs):
        self.encoder, self.decoder = nnx.Linear(16, 16, rngs=rngs), nnx.Linear(16, 16, rngs=rngs)
        self.quantizer = kvae.nnx.KohonenVQ(16, grid_shape=(4, 8), rngs=rngs)

    def __call__(self, x):
        out = self.quantizer(self.encoder(x))
        return jnp.mean((self.decoder(out.quantized) - x) ** 2) + out.loss


@pytest.mark.parametrize("mode", MODES)
def test_trained_under_jit_it_is_the_linen_layer_bit_for_bit(mode):
    layer, twin = make(), kvae.KohonenVQ((4, 8))
    variables = {"codebook": layer.variables["codebook"]}
    step = nnx.jit(lambda layer, z: layer(z).loss, **mode)
    twin_step = jax.jit(lambda v, z: twin.apply(v, z, train=True, mutable=["codebook"]))
    for t in range(4):
        loss = step(layer, Z + t)
        out, variables = twin_step(variables, Z + t)
        assert loss == out.loss
    jax.tree.map(np.testing.assert_array_equal, layer.variables["codebook"], dict(variables["codebook"]))
    assert steps(layer) == 4


@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_parameters_and_a_codebook_that_moves(mode):
    """Both modes differentiate with respect to parameters, and carry the rest along."""
    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit(**mode)
    def step(model, optimizer, x):
        graph, params, rest = nnx.split(model, nnx.Param, ...)

        def loss(params, rest):
            inner = nnx.merge(graph, params, rest, copy=True)
            return inner(x), nnx.state(inner, nnx.Not(nnx.Param))

        (value, rest), gradients = jax.value_and_grad(loss, has_aux=True)(params, rest)
        nnx.update(model, rest)
        optimizer.update(model, gradients)
        return value

    losses = [float(step(model, optimizer, Z)) for _ in range(5)]
    assert losses[-1] < losses[0]
    assert steps(model.quantizer) == 5


def test_in_graph_mode_nnx_grad_does_it_in_one_line():
    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        loss, gradients = nnx.value_and_grad(lambda model: model(x))(model)
        optimizer.update(model, gradients)
        return loss

    before = float(step(model, optimizer, Z))
    assert float(step(model, optimizer, Z)) < before
    assert steps(model.quantizer) == 2


@pytest.mark.parametrize("mode", MODES)
def test_scan_and_vmap_carry_the_codebook(mode):
    scan = nnx.scan(lambda layer, z: (layer, layer(z).loss), in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0), **mode)
    layer, losses = scan(make(), np.stack([Z] * 3))
    assert losses.shape == (3,)
    assert steps(layer) == 3
    many = nnx.vmap(lambda key: make(key), **mode)(jax.random.split(jax.random.key(0), 3))
    nnx.vmap(lambda layer, z: layer(z).loss, in_axes=(0, None), **mode)(many, Z)
    np.testing.assert_array_equal(steps(many), [1, 1, 1])
    words = np.asarray(many.codebook["codewords"].get_value())
    assert np.any(words[0] != words[1])


def test_train_and_eval_of_a_model_reach_it_and_a_call_can_say_otherwise():
    model = Model(nnx.Rngs(0))
    model.eval()
    model(Z)
    assert steps(model.quantizer) == 0
    model.quantizer(Z, train=True)
    model.train()
    model(Z)
    model.quantizer(Z, train=False)
    assert steps(model.quantizer) == 2
    with pytest.raises(InputError, match=r"train is set by model\.train"):
        make(train=True)


def test_its_state_is_of_a_type_of_its_own_and_survives_a_checkpoint(tmp_path):
    layer = make()
    layer(Z)
    state = nnx.state(layer, kvae.nnx.Codebook)
    assert {leaf.shape for leaf in jax.tree.leaves(state)} == {(32, 16), (32,), ()}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.to_pure_dict(nnx.state(layer)))
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", nnx.to_pure_dict(nnx.state(make(1))))
    other = make(1)
    own = nnx.state(other)
    nnx.replace_by_pure_dict(own, restored)
    nnx.update(other, own)
    np.testing.assert_array_equal(other(Z, train=False).codes, layer(Z, train=False).codes)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_mesh_changes_nothing(kind):
    alone, together = make(), make()
    alone(Z)
    mesh = Mesh(np.array(jax.devices()), "data", axis_types=(kind,))
    with jax.set_mesh(mesh):
        state = jax.device_put(nnx.state(together), NamedSharding(mesh, PartitionSpec()))
        nnx.update(together, state)
        z = jax.device_put(Z, NamedSharding(mesh, PartitionSpec("data")))
        nnx.jit(lambda layer, z: layer(z).loss)(together, z)
    for one, other in zip(
        *(jax.tree.leaves(nnx.state(layer, kvae.nnx.Codebook)) for layer in (alone, together)), strict=True
    ):
        np.testing.assert_allclose(one, jax.device_get(other), rtol=1e-5, atol=1e-6)


def test_stacks_are_made_of_linen_layers_and_dropout_has_a_stream():
    layer = kvae.nnx.ResidualVQ(16, quantizer=kvae.KohonenVQ((3, 4)), depth=3, dropout=1.0, rngs=nnx.Rngs(0))
    kept = {int(np.count_nonzero(layer(Z).counts.sum(axis=1))) for _ in range(10)}
    assert len(kept) > 1
    assert layer(Z, train=False).codes.shape == (64, 3)
    assert layer.lookup(layer(Z, train=False).codes).shape == (64, 16)


def test_the_bridge_does_not_lose_a_codebook_without_a_word():
    bridged = nnx.bridge.lazy_init(nnx.bridge.ToNNX(kvae.KohonenVQ((4, 8)), rngs=nnx.Rngs(0)), Z)
    with pytest.raises(InputError, match="its collection is not mutable"):
        bridged(Z, train=True)
    step = nnx.jit(lambda layer, z: layer(z, train=True, mutable=["codebook"]).loss, graph=False, graph_updates=False)
    with pytest.warns(UserWarning, match=r"use the layer of kvae\.nnx"):
        step(bridged, Z)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bridged(Z, train=True, mutable=["codebook"])  # outside of a transformation nothing is lost
