"""The layers for Flax NNX equal the linen layers, in all transformations, in graph mode and in tree mode."""

import functools
import inspect
import types
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import kvae
from kvae.core.errors import InputError

Z = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)
MODES = [pytest.param({"graph": on, "graph_updates": on}, id="graph" if on else "tree") for on in (True, False)]


@functools.cache
def _made(seed, **fields):
    return kvae.nnx.KohonenVQ(16, grid_shape=(4, 8), rngs=nnx.Rngs(seed), **fields)


def make(seed=0, **fields):
    """A layer of its own; initialisation runs once for each seed."""
    return nnx.clone(_made(seed, **fields))


call = nnx.jit(lambda layer, z, train=None: layer(z, train=train), static_argnames="train")


def steps(layer):
    return np.asarray(layer.codebook["step"].get_value())


class Model(nnx.Module):
    def __init__(self, rngs):
        self.encoder, self.decoder = nnx.Linear(16, 16, rngs=rngs), nnx.Linear(16, 16, rngs=rngs)
        self.quantizer = kvae.nnx.KohonenVQ(16, grid_shape=(4, 8), rngs=rngs)

    def __call__(self, x):
        out = self.quantizer(self.encoder(x))
        return jnp.mean((self.decoder(out.quantized) - x) ** 2) + out.loss


MAP = kvae.KohonenVQ((3, 4))
LAYERS = {
    "graph": lambda rngs: kvae.nnx.KohonenVQ(16, grid_shape=(4, 8), rngs=rngs),
    "tree": lambda rngs: kvae.nnx.KohonenVQ(16, grid_shape=(4, 8), rngs=rngs),
    "gradient": lambda rngs: kvae.nnx.GradientVQ(16, grid_shape=(4, 8), neighborhood="hard", rngs=rngs),
    "FSQ": lambda rngs: kvae.nnx.FSQ(16, levels=(4, 3), rngs=rngs),
    "LFQ": lambda rngs: kvae.nnx.LFQ(16, bits=5, rngs=rngs),
    "SimVQ": lambda rngs: kvae.nnx.SimVQ(16, codebook_size=32, rngs=rngs),
    "IBQ": lambda rngs: kvae.nnx.IBQ(16, codebook_size=32, rngs=rngs),
    "residual": lambda rngs: kvae.nnx.ResidualVQ(16, quantizer=MAP, depth=2, codebook_dim=8, rngs=rngs),
    "grouped": lambda rngs: kvae.nnx.GroupedVQ(16, quantizer=MAP, groups=2, rngs=rngs),
}


@pytest.mark.parametrize("name", LAYERS)
def test_output_and_updates_equal_linen_bit_for_bit(name):
    layer = LAYERS[name](nnx.Rngs(0))
    linen, variables = layer.linen, layer.variables
    step = nnx.jit(lambda layer, z: layer(z), **MODES[1 if name == "tree" else 0].values[0])
    linen_step = jax.jit(lambda v, z: linen.apply(v, z, train=True, mutable=["codebook"]))
    for t in range(3):
        out = step(layer, Z + t)
        expected, updated = linen_step(variables, Z + t)
        variables = {**variables, **updated}
        jax.tree.map(np.testing.assert_array_equal, out, expected)
    jax.tree.map(np.testing.assert_array_equal, layer.variables, variables)


NAMES = [name for name in kvae.nnx.__all__ if name != "Codebook"]


@pytest.mark.parametrize("name", NAMES)
def test_signature_has_the_fields_of_the_linen_layer(name):
    linen = inspect.signature(getattr(kvae, name)).parameters
    fields = {field: (kind.default, plain_type(kind.annotation)) for field, kind in linen.items()}
    for field in ("train", "parent", "name"):
        del fields[field]
    parameters = inspect.signature(getattr(kvae.nnx, name)).parameters
    arguments = {field: (kind.default, kind.annotation) for field, kind in parameters.items()}
    empty = inspect.Parameter.empty
    expected = {"features": (empty, int), **fields, "rngs": (empty, nnx.Rngs), "use_running_average": (False, bool)}
    assert list(arguments) == list(expected)
    assert arguments == expected


FIELDS = {
    "grid_shape": (4, 8), "neighborhood": "gaussian", "shrink_step": 0.2, "radius": 2.0, "commitment_weight": 0.5,
    "topology": "torus", "initial_width": 2.0, "lowest_width": 0.5, "decay": 0.9, "init_count": 2.0,
    "update_empty": False, "metric": "cosine", "gradient": "rotation", "restart_below": 0.5, "axis_name": "data",
    "pull": "codeword", "neighbor_weight": 2.0, "levels": (4, 3), "quantizer": MAP, "depth": 2, "dropout": 0.5,
    "groups": 2, "bits": 9, "entropy_weight": 0.2, "diversity_weight": 0.5, "temperature": 0.1, "codebook_size": 32,
    "squashing": "ifsq", "noise_dropout": 0.5, "start": "kmeans", "codebook_dim": 4, "orthogonal_weight": 0.5,
    "codebooks": "shared", "codebook_weight": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_arguments_reach_the_linen_layer(name):
    kind = getattr(kvae.nnx, name)
    parameters = inspect.signature(kind).parameters
    fields = {field: FIELDS[field] for field in parameters if field not in ("features", "rngs", "use_running_average")}
    layer = nnx.eval_shape(lambda: kind(16, **fields, rngs=nnx.Rngs(0)))
    for field, value in fields.items():
        assert getattr(layer.linen, field) == value != parameters[field].default


def plain_type(annotation):
    """An annotation without its ranges."""
    if typing.get_origin(annotation) is typing.Annotated:
        return plain_type(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) is tuple:
        return tuple[tuple(map(plain_type, typing.get_args(annotation)))]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.Union[tuple(map(plain_type, typing.get_args(annotation)))]  # noqa: UP007
    return annotation


@pytest.mark.parametrize("mode", MODES)
def test_gradient_step_updates_the_codebook_too(mode):
    """Parameters follow their gradients; the codebook is returned as auxiliary state."""
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


def test_nnx_grad_updates_the_codebook_in_graph_mode():
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
    many = nnx.vmap(_made.__wrapped__, **mode)(jax.random.split(jax.random.key(0), 3))
    nnx.vmap(lambda layer, z: layer(z).loss, in_axes=(0, None), **mode)(many, Z)
    np.testing.assert_array_equal(steps(many), [1, 1, 1])
    words = np.asarray(many.codebook["codewords"].get_value())
    assert np.any(words[0] != words[1])


def test_model_train_and_eval_switch_learning():
    model = Model(nnx.Rngs(0))
    model.eval()
    call(model.quantizer, Z)
    assert steps(model.quantizer) == 0
    call(model.quantizer, Z, train=True)
    model.train()
    call(model.quantizer, Z)
    call(model.quantizer, Z, train=False)
    assert steps(model.quantizer) == 2


def both():
    """A quantiser and a BatchNorm, which learn from every call unless they are switched off."""
    norm = nnx.BatchNorm(16, rngs=nnx.Rngs(0))
    return nnx.Dict(map=make(), norm=norm, stack=nnx.clone(_stack()), grouped=nnx.clone(_grouped()))


@functools.cache
def _stack():
    return kvae.nnx.ResidualVQ(16, quantizer=MAP, depth=1, rngs=nnx.Rngs(0))


@functools.cache
def _grouped():
    return kvae.nnx.GroupedVQ(16, quantizer=MAP, groups=1, rngs=nnx.Rngs(0))


def switched(method, *arguments, **options):
    def switch(model):
        getattr(model, method)(*arguments, **options)
        return model

    return switch


SWITCHES = {
    "nothing": (lambda model: model, True),
    "eval": (switched("eval"), False),
    "eval, train": (lambda model: switched("train")(switched("eval")(model)), True),
    "attribute": (switched("set_attributes", use_running_average=True), False),
    "view": (lambda model: nnx.view(model, use_running_average=True), False),
    "view of a view": (lambda m: nnx.view(nnx.view(m, use_running_average=True), use_running_average=False), True),
    "view of eval": (lambda m: nnx.view(switched("eval")(m), use_running_average=False), True),
    "view of dropout": (lambda m: nnx.view(m, deterministic=True, raise_if_not_found=False), True),
    "view of BatchNorm only": (lambda m: nnx.view(m, only=nnx.BatchNorm, use_running_average=True), True),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_layers_obey_what_batch_norm_obeys(name):
    switch, learns = SWITCHES[name]
    model = both()
    switched_model = switch(model)
    assert switched_model.norm.use_running_average is (not learns or "only" in name)
    for layer in ("map", "stack", "grouped"):
        call(switched_model[layer], Z)
        leaves = jax.tree.leaves(nnx.state(model[layer], kvae.nnx.Codebook))
        assert max(int(leaf) for leaf in leaves if leaf.shape == ()) == int(learns)


@pytest.mark.parametrize("kind", ["map", "norm"])
def test_layer_without_a_mode_is_refused_as_batch_norm_is(kind):
    layer = both()[kind]
    layer.use_running_average = None
    with pytest.raises(ValueError, match="use_running_average"):
        layer(Z)


STACK = {"quantizer": MAP, "depth": 2}


@pytest.mark.parametrize(
    ("make_layer", "message"),
    [
        (lambda: kvae.nnx.KohonenVQ(16, grid_shape=(4, 8), rngs=0), "rngs is 0; it must be a flax.nnx.Rngs"),
        (lambda: kvae.nnx.FSQ(16, rngs=None), "rngs is None; it must be a flax.nnx.Rngs"),
        (lambda: kvae.nnx.GradientVQ(16, grid_shape=(4, 8), rngs=jax.random.key(0)), "it must be a flax.nnx.Rngs"),
        (lambda: kvae.nnx.FSQ(16, rngs=nnx.Rngs(dropout=0)), "rngs has no stream 'params'"),
        (lambda: kvae.nnx.ResidualVQ(16, **STACK, dropout=0.5, rngs=nnx.Rngs(params=0)), "no stream 'dropout'"),
        (
            lambda: kvae.nnx.GroupedVQ(16, quantizer=kvae.ResidualVQ(MAP, dropout=0.5), rngs=nnx.Rngs(params=0)),
            "no stream 'dropout'",
        ),
        (lambda: kvae.nnx.ResidualVQ(16, quantizer=make(), rngs=nnx.Rngs(0)), "it must be the linen layer, kvae.Koho"),
        (lambda: kvae.nnx.GroupedVQ(16, quantizer=make(), rngs=nnx.Rngs(0)), "it must be the linen layer, kvae.Koho"),
    ],
)
def test_wrong_arguments_are_one_line(make_layer, message):
    with pytest.raises(InputError, match=message):
        make_layer()


def test_codebook_variables_survive_a_checkpoint(tmp_path):
    layer = make()
    call(layer, Z)
    state = nnx.state(layer, kvae.nnx.Codebook)
    assert {leaf.shape for leaf in jax.tree.leaves(state)} == {(32, 16), (32,), ()}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.to_pure_dict(nnx.state(layer)))
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", nnx.to_pure_dict(nnx.state(make(1))))
    other = make(1)
    state = nnx.state(other)
    nnx.replace_by_pure_dict(state, restored)
    nnx.update(other, state)
    np.testing.assert_array_equal(call(other, Z, train=False).codes, call(layer, Z, train=False).codes)


def test_residual_dropout_draws_from_its_stream():
    layer = kvae.nnx.ResidualVQ(16, quantizer=kvae.KohonenVQ((3, 4)), depth=3, dropout=1.0, rngs=nnx.Rngs(0))
    depths = {int(np.count_nonzero(call(layer, Z).counts.sum(axis=1))) for _ in range(10)}
    assert len(depths) > 1
    out = call(layer, Z, train=False)
    assert np.all(out.counts.sum(axis=1) == 64)
    np.testing.assert_allclose(layer.lookup(out.codes), out.quantized, atol=1e-6)


@pytest.mark.parametrize(("mode", "steps"), [(MODES[0].values[0], 1), (MODES[1].values[0], 0)], ids=["graph", "tree"])
def test_bridge_keeps_updates_in_graph_mode_only(mode, steps):
    """As the docstring of `kvae.quantizers.Quantizer` says."""
    bridged = nnx.bridge.lazy_init(nnx.bridge.ToNNX(kvae.KohonenVQ((4, 8)), rngs=nnx.Rngs(0)), Z)
    with pytest.raises(InputError, match='the collection "codebook" is not mutable'):
        bridged(Z, train=True)
    nnx.jit(lambda layer, z: layer(z, train=True, mutable=["codebook"]).loss, **mode)(bridged, Z)
    assert int(bridged.step[...]) == steps
