"""Layers and models under settings that users choose to find mistakes: no implicit ranks, and 64-bit types."""

import jax
import jax.numpy as jnp
import pytest

import kvae
from kvae.models import URLSOM, VQVAE, VQVAE2

LAYERS = {
    "map": kvae.KohonenVQ((4, 8)),
    "torus": kvae.KohonenVQ((4, 8), "gaussian", topology="torus"),
    "hexagons": kvae.KohonenVQ((4, 8), "exponential", topology="hexagonal"),
    "cosine, rotation": kvae.KohonenVQ((4, 8), metric="cosine", gradient="rotation"),
    "restarts": kvae.KohonenVQ((4, 8), "none", restart_below=0.5),
    "gradient": kvae.GradientVQ((4, 8), "hard"),
    "gradient, codeword": kvae.GradientVQ((4, 8), "gaussian", pull="codeword"),
    "FSQ": kvae.FSQ((5, 4)),
    "FSQ, own size": kvae.FSQ((2,) * 16),
    "FSQ, noise": kvae.FSQ((5, 4), noise_dropout=0.5),
    "LFQ": kvae.LFQ(6),
    "BSQ": kvae.BSQ(6),
    "SimVQ": kvae.SimVQ(32),
    "residual": kvae.ResidualVQ(kvae.KohonenVQ((4, 8)), depth=2, dropout=0.5),
    "grouped": kvae.GroupedVQ(kvae.KohonenVQ((4, 8)), groups=2),
}
SMALL = {"channels": 8, "residual_channels": 4, "residual_blocks": 1, "embedding_dim": 8}
MODELS = {
    "vqvae": VQVAE(**SMALL, quantizer=LAYERS["map"], augmentations=("flip_horizontal", "rot90", "translate")),
    "vqvae2": VQVAE2(**SMALL, quantizer_top=LAYERS["map"], quantizer_bottom=LAYERS["map"]),
    "urlsom": URLSOM(grid_shape=(4, 5), sigma=1.0, channels=(4, 8), blocks=1),
}


def call_layer(layer, z):
    """Returns whatever a layer computes."""
    rngs, mask = {"params": jax.random.key(0), "dropout": jax.random.key(0)}, z[..., 0] > 0
    variables = layer.init(rngs, z)
    out, updated = layer.apply(variables, z, train=True, mask=mask, rngs=rngs, mutable=["codebook"])
    evaluated = layer.apply(variables, z, mask=mask)
    sums = layer.apply(variables, z, evaluated, mask, method="batch_sums")
    gradient = jax.grad(lambda z: jnp.sum(layer.apply(variables, z, mask=mask).quantized))(z)
    lookup, codewords = layer.apply(variables, out.codes, method="lookup"), layer.apply(variables, method="codewords")
    return out, updated, sums, gradient, lookup, codewords


def call_model(model, images):
    """Returns what training and evaluation compute."""
    batch = {"image": images, "mask": jnp.ones(len(images), bool)}
    rngs = dict.fromkeys(("augmentation", "dropout"), jax.random.key(0))
    variables = model.init({"params": jax.random.key(0), **rngs}, batch, method="loss_and_metrics")
    trained = model.apply(variables, batch, method="loss_and_metrics", rngs=rngs, mutable=["batch_stats"])
    sums = model.apply(variables, batch, method="batch_sums")
    return trained, sums, [model.apply(variables, images, method=name) for name in model.methods if name != "decode"]


@pytest.mark.parametrize("name", LAYERS)
def test_layers_name_their_ranks_and_keep_their_dtypes(name):
    z, dtypes = jax.ShapeDtypeStruct((6, 5, 16), jnp.float32), []
    for is_wide in (False, True):
        with jax.enable_x64(is_wide), jax.numpy_rank_promotion("raise"):
            traced = jax.eval_shape(lambda z: call_layer(LAYERS[name], z), z)
        dtypes.append([leaf.dtype for leaf in jax.tree.leaves(traced)])
    assert dtypes[0] == dtypes[1]


@pytest.mark.parametrize("name", MODELS)
def test_models_name_their_ranks(name):
    with jax.numpy_rank_promotion("raise"):
        images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.uint8)
        assert jax.tree.leaves(jax.eval_shape(lambda images: call_model(MODELS[name], images), images))
