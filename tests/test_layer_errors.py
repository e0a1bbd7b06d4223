"""Mistakes in the use of a layer are one line; layers in lifted transformations learn or raise."""

import flax.linen as nn
import jax
import numpy as np
import pytest

import kvae
from kvae.core.errors import InputError
from modules import apply, init
from vectors import vectors

Z = vectors(6, 8)
MAP = kvae.KohonenVQ((3, 4))


def start(layer, z=Z):
    return init(layer, {"params": jax.random.key(0), "dropout": jax.random.key(1)}, z)


LOOKUPS = {
    "map": (MAP, ()),
    "gradient": (kvae.GradientVQ((3, 4)), ()),
    "FSQ": (kvae.FSQ((4, 3)), ()),
    "SimVQ": (kvae.SimVQ(codebook_size=12), ()),
    "IBQ": (kvae.IBQ(codebook_size=12), ()),
    "residual": (kvae.ResidualVQ(MAP, depth=2), (2,)),
    "grouped": (kvae.GroupedVQ(MAP, groups=2), (2,)),
}


@pytest.mark.parametrize("name", LOOKUPS)
@pytest.mark.parametrize("code", [-2, 12, 2**31 - 1, 2**32])
def test_lookup_names_the_first_code_out_of_range(name, code):
    layer, axis = LOOKUPS[name]
    codes = np.zeros((2, 3, *axis), np.int64)
    codes[1, 2] = codes[(1, 1, -1) if axis else (1, 1)] = code
    place = r"\[1, 1, 1\]" if axis else r"\[1, 1\]"
    with pytest.raises(InputError, match=rf"codes{place} is {code}; codes must be from 0 to 11"):
        layer.apply(start(layer), codes, method="lookup")


def test_only_residual_codes_may_be_dropped():
    with pytest.raises(InputError, match=r"codes is -1; codes must be from 0 to 11(?!,)"):
        MAP.apply(start(MAP), np.int32(-1), method="lookup")
    layer = kvae.ResidualVQ(MAP, depth=2)
    variables = start(layer)
    both, first = (layer.apply(variables, np.array(codes), method="lookup") for codes in ([3, -1], [3]))
    np.testing.assert_array_equal(both, first)


def test_variables_of_another_grid_are_refused():
    for kind in (kvae.KohonenVQ, kvae.GradientVQ):
        variables = start(kind((3, 4)))
        with pytest.raises(InputError, match=r"grid_shape is \(4, 8\), which has 32 nodes, .* has 12 codewords"):
            kind((4, 8)).apply(variables, Z)
        with pytest.raises(InputError, match=r"grid_shape is \(4, 8\), which has 32 nodes, .* has 12 codewords"):
            kind((4, 8)).apply(variables, np.int32([0]), method="lookup")


@pytest.mark.parametrize("shape", [(0, 8), (3, 0, 8)])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_empty_batch_restarts_nothing(shape, metric):
    part = kvae.KohonenVQ((3, 4), restart_below=0.5, metric=metric)
    for layer in (part, kvae.ResidualVQ(part, depth=2)):
        variables = start(layer)
        _, updated = apply(layer, variables, np.zeros(shape, np.float32), train=True, mutable=["codebook"])
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updated))


def lifted(layer):
    return nn.vmap(layer, variable_axes={"codebook": 0}, split_rngs={"params": True})


@pytest.mark.filterwarnings("ignore:kwargs are not supported in vmap")
def test_lifted_layer_without_train_is_refused():
    """`nn.vmap` drops the keyword `train`, as it drops `use_running_average` of BatchNorm, which raises too."""
    many, z = lifted(kvae.KohonenVQ), Z[None]
    variables = start(many((3, 4)), z)
    with pytest.raises(InputError, match=r"pass train=True or train=False to the call.*set the attribute: KohonenVQ"):
        many((3, 4)).apply(variables, z, train=True, mutable=["codebook"])
    _, updated = many((3, 4), train=True).apply(variables, z, mutable=["codebook"])
    assert updated["codebook"]["step"].tolist() == [1]
    assert many((3, 4), train=False).apply(variables, z, mutable=["codebook"])[1]["codebook"]["step"].tolist() == [0]
    assert many((3, 4)).apply(variables, z).codes.shape == (1, 6)


def test_layer_without_state_learns_nothing():
    layer, z = kvae.FSQ((4, 3)), vectors(6, 2)
    trained, (evaluated, _) = layer.apply({}, z, train=True), layer.apply({}, z, mutable=["codebook"])
    np.testing.assert_array_equal(trained.codes, evaluated.codes)


@pytest.mark.parametrize(
    "field",
    ["init_count", "shrink_step", "restart_below", "commitment_weight", "radius", "initial_width", "lowest_width"],
)
def test_numbers_that_overflow_float32_are_refused(field):
    with pytest.raises(InputError, match=rf"{field} is 1e\+39; it must be .*a number .*1e\+30"):
        kvae.KohonenVQ((3, 4), **{field: 1e39})
    layer = kvae.KohonenVQ((3, 4), **{field: 1e30})
    variables = start(layer)
    for _ in range(2):
        variables = apply(layer, variables, Z, train=True, mutable=["codebook"])[1]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))
