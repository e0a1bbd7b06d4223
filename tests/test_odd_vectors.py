"""Quantisers reject wrong shapes, dtypes and fields, and ignore vectors with NaN and infinities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvae
from kvae.core.errors import InputError
from modules import init
from vectors import vectors


def test_shape_errors_name_shape_and_dtype():
    layer = kvae.KohonenVQ((4, 4))
    variables = init(layer, jax.random.key(0), vectors(3, 8))
    with pytest.raises(InputError, match="z has 9-dimensional vectors; for this codebook they must be 8-dimensional"):
        layer.apply(variables, vectors(3, 9))
    with pytest.raises(InputError, match=r"z is int32\[3, 8\]; it must be a float array"):
        layer.apply(variables, np.zeros((3, 8), np.int32))
    with pytest.raises(InputError, match=r"mask is float32\[3\]; for this z it must be bool\[3\]"):
        layer.apply(variables, vectors(3, 8), mask=np.ones(3, np.float32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kvae.KohonenVQ((0, 3)), "grid_shape is"),
        (lambda: kvae.KohonenVQ((4, 4), "hrad"), "neighborhood is 'hrad'; did you mean 'hard'"),
        (lambda: kvae.KohonenVQ((4, 4), decay=1.0), "decay is 1.0; it must be a number >= 0 and < 1"),
        (lambda: kvae.KohonenVQ(4), "grid_shape is 4; it must be a tuple of one or more integers"),
        (lambda: kvae.KohonenVQ((10**5, 10**5)), "it must have at most 1,048,576"),
        (lambda: kvae.KohonenVQ((4, 4), radius=float("inf")), "radius is inf"),
        (lambda: kvae.KohonenVQ((200_000,), "gaussian"), "needs a K x K matrix"),
        (lambda: kvae.KohonenVQ((4, 4), update_empty="False"), "update_empty is 'False'; it must be True or False"),
        (lambda: kvae.KohonenVQ((4, 4), init_count=-1.0), "init_count is -1.0"),
        (lambda: kvae.KohonenVQ((4, 4), commitment_weight=-1.0), "commitment_weight is -1.0"),
        (lambda: kvae.GradientVQ((4, 4), pull="z"), "pull is 'z'; it must be one of encoder, codeword"),
    ],
)
def test_impossible_fields_are_rejected(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    "layer",
    [
        kvae.KohonenVQ((3, 4), gradient="rotation", restart_below=0.5),
        kvae.KohonenVQ((3, 4), "none", metric="cosine"),
        kvae.GradientVQ((3, 4), "hard"),
        kvae.FSQ((3, 4)),
        kvae.LFQ(bits=4),
        kvae.BSQ(bits=4),
        kvae.SimVQ(codebook_size=12),
        kvae.IBQ(codebook_size=12),
        kvae.ResidualVQ(quantizer=kvae.KohonenVQ((3, 4)), depth=2),
        kvae.GroupedVQ(quantizer=kvae.KohonenVQ((3, 4)), groups=2),
    ],
    ids=["rotation", "cosine", "gradient", "fsq", "lfq", "bsq", "simvq", "ibq", "residual", "grouped"],
)
def test_gradients_ignore_masked_nan(layer):
    mask = jnp.ones((5, 4), bool).at[0, 0].set(False)
    z = vectors(5, 4, 4)
    variables = init(layer, jax.random.key(0), z)

    def loss(params, z):
        out = layer.apply({**variables, "params": params}, z, mask=mask)
        return out.loss + jnp.sum(jnp.where(mask[..., None], out.quantized, 0))

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    for value in (np.nan, np.inf, 3e38):
        z[0, 0, 0] = value
        results = gradient(variables.get("params", {}), z)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(results))


@pytest.mark.parametrize("codes", [[1, 2], None, 1, "x", jnp.ones((2, 2)), jnp.ones((2, 2), bool)])
@pytest.mark.parametrize("layer", [kvae.KohonenVQ((2, 2)), kvae.FSQ((2, 2)), kvae.ResidualVQ(kvae.KohonenVQ((2, 2)))])
def test_codes_must_be_integers(layer, codes):
    variables = init(layer, jax.random.key(0), jnp.zeros((1, 2)))
    with pytest.raises(InputError, match=r"codes are .*; they must be an integer array"):
        layer.apply(variables, codes, method="lookup")
