"""Settings that users choose to find mistakes: no implicit ranks, no implicit dtypes, and 64-bit types."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import kvae
from kvae import classic, measures
from kvae.models import URLSOM, VQVAE, VQVAE2
from kvae.topology import GRIDS, NEIGHBORHOODS, Neighborhood, make_grid, spread
from vectors import DATA

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
    "IBQ": kvae.IBQ(32),
    "residual": kvae.ResidualVQ(kvae.KohonenVQ((4, 8)), depth=2, dropout=0.5),
    "grouped": kvae.GroupedVQ(kvae.KohonenVQ((4, 8)), groups=2),
}
SMALL = {"channels": 8, "residual_channels": 4, "residual_blocks": 1, "embedding_dim": 8}
NNX_LAYERS = {
    "map": lambda: kvae.nnx.KohonenVQ(16, grid_shape=(4, 8), start="kmeans", codebook_dim=4, rngs=nnx.Rngs(0)),
    "gradient": lambda: kvae.nnx.GradientVQ(16, grid_shape=(4, 8), orthogonal_weight=0.1, rngs=nnx.Rngs(0)),
    "FSQ": lambda: kvae.nnx.FSQ(16, levels=(5, 4), noise_dropout=0.5, rngs=nnx.Rngs(0)),
    "LFQ": lambda: kvae.nnx.LFQ(16, bits=6, rngs=nnx.Rngs(0)),
    "BSQ": lambda: kvae.nnx.BSQ(16, bits=6, rngs=nnx.Rngs(0)),
    "SimVQ": lambda: kvae.nnx.SimVQ(16, codebook_size=32, gradient="diveq", rngs=nnx.Rngs(0)),
    "IBQ": lambda: kvae.nnx.IBQ(16, codebook_size=32, rngs=nnx.Rngs(0)),
    "residual": lambda: kvae.nnx.ResidualVQ(16, quantizer=LAYERS["map"], codebooks="shared", rngs=nnx.Rngs(0)),
    "grouped": lambda: kvae.nnx.GroupedVQ(16, quantizer=LAYERS["restarts"], codebook_dim=3, rngs=nnx.Rngs(0)),
}
MODELS = {
    "vqvae": VQVAE(**SMALL, quantizer=LAYERS["map"], augmentations=("flip_horizontal", "rot90", "translate")),
    "vqvae2": VQVAE2(**SMALL, quantizer_top=LAYERS["map"], quantizer_bottom=LAYERS["map"]),
    "urlsom": URLSOM(grid_shape=(4, 5), sigma=1.0, channels=(4, 8), blocks=1),
}


@contextlib.contextmanager
def strict():
    """JAX raises an exception where it would otherwise broadcast ranks or convert dtypes."""
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


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
def test_layers_name_their_ranks_and_dtypes(name):
    z, dtypes = jax.ShapeDtypeStruct((6, 5, 16), jnp.float32), []
    for is_wide in (False, True):
        with jax.enable_x64(is_wide), strict():
            traced = jax.eval_shape(lambda z: call_layer(LAYERS[name], z), z)
        dtypes.append([leaf.dtype for leaf in jax.tree.leaves(traced)])
    assert dtypes[0] == dtypes[1]


@pytest.mark.parametrize("name", MODELS)
def test_models_name_their_ranks_and_dtypes(name):
    with strict():
        images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.uint8)
        assert jax.tree.leaves(jax.eval_shape(lambda images: call_model(MODELS[name], images), images))


@pytest.mark.parametrize("name", NNX_LAYERS)
def test_nnx_layers_name_their_ranks_and_dtypes(name):
    def call(z):
        layer = NNX_LAYERS[name]()
        return layer(z), layer(z, train=False), layer.codewords(), layer.lookup(layer(z).codes)

    with strict():
        assert jax.tree.leaves(nnx.eval_shape(call, jax.ShapeDtypeStruct((6, 5, 16), jnp.bfloat16)))


def call_maths(grid, z, codewords):
    """Returns whatever the functions of arrays compute."""
    codes, images = jnp.arange(len(codewords), dtype=jnp.int32), jnp.ones((2, 4, 4, 3))
    yield grid.between(codes, codes[::-1], 0.5), grid.shift(codes, -1)
    yield measures.to_uint8(images, jnp.ones(3), 2.0), measures.psnr(images, images), measures.u_matrix(codewords, grid)
    yield measures.topographic_error(z, codewords, grid), measures.trustworthiness(codewords, grid, 2)
    for kernel in NEIGHBORHOODS:
        neighborhood = Neighborhood(grid, kernel)
        yield [spread(neighborhood, values, 3) for values in (codewords, codewords[:, 0])]
        yield classic.batch_update(codewords, z, neighborhood, 3)
        for update in (classic.online_update, classic.hebbian_update):
            yield update(codewords, z[0], neighborhood, 3, 0.1)


@pytest.mark.parametrize("topology", GRIDS)
def test_maths_names_its_ranks_and_dtypes(topology):
    z, codewords = (jax.ShapeDtypeStruct((n, 3), jnp.float32) for n in (20, 12))
    dtypes = []
    for is_wide in (False, True):
        with jax.enable_x64(is_wide), strict():
            traced = jax.eval_shape(lambda z, w: [*call_maths(make_grid(topology, (4, 3)), z, w)], z, codewords)
        dtypes.append([leaf.dtype for leaf in jax.tree.leaves(traced)])
    assert dtypes[0] == dtypes[1]


@pytest.mark.parametrize(
    ("dtype", "fields"),
    [
        ("float32", dict(metric="cosine", neighborhood="exponential", n_clusters=2, feature_weights=[1, 2, 3, 4, 5])),
        ("float64", dict(missing="ignore", topology="hexagonal")),
    ],
)
def test_som_names_its_ranks_and_dtypes(dtype, fields, monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    X = DATA[:40].astype(dtype)
    X[::3, 1] = np.nan if fields.get("missing") else 0
    with strict():
        som = kvae.SOM((2, 3), n_epochs=1, **fields).fit(X, sample_weight=np.arange(1.0, 41))
    assert som.cluster_centers_.dtype == dtype
