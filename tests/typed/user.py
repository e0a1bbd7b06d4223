"""A user's program that names every public name of kvae; a type checker reads it, nothing runs it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import kvae
from kvae.topology import Kernel, Neighborhood


class Autoencoder(nn.Module):
    """A linen model with a map."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        out = kvae.KohonenVQ(grid_shape=(4, 8), neighborhood="gaussian", initial_width=2.0)(x, train=train)
        return out.quantized, out.loss


class Bigram(kvae.Model):
    """A model of one's own."""

    def loss_and_metrics(self, batch, *, train: bool = True) -> kvae.LossAndMetrics:
        loss = jnp.mean(batch["codebook"])
        return kvae.LossAndMetrics(loss, {"loss": loss})

    @property
    def metrics(self) -> dict[str, kvae.Metric]:
        return {"loss": kvae.Metric(panel=("Loss", "loss"), better=min)}


z = jnp.ones((2, 5, 16))
layer = kvae.KohonenVQ(grid_shape=(4, 8))
variables = layer.init(jax.random.key(0), z)
out, updated = layer.apply(variables, z, train=True, mutable=["codebook"])

layers = [
    kvae.GradientVQ(grid_shape=(4, 8), neighborhood="hard"),
    kvae.FSQ(levels=(8, 5), squashing="ifsq"),
    kvae.LFQ(bits=9),
    kvae.BSQ(bits=9),
    kvae.SimVQ(codebook_size=32),
    kvae.IBQ(codebook_size=32),
    kvae.ResidualVQ(quantizer=kvae.KohonenVQ((4, 4)), depth=2),
    kvae.GroupedVQ(quantizer=kvae.KohonenVQ((4, 4)), groups=2),
]
own = kvae.nnx.KohonenVQ(16, grid_shape=(4, 8), rngs=nnx.Rngs(0))
quantized: kvae.Quantized = own(z)
loss: jax.Array = quantized.loss
kvae.testing.check_quantizer(lambda: kvae.KohonenVQ(grid_shape=(4, 8)))

kvae.NEIGHBORHOODS["tent"] = Kernel(lambda distance, width, radius: jnp.maximum(0, 1 - distance / width))
kvae.GRIDS["line"] = lambda shape: kvae.grids.Plane(shape)
kvae.QUANTIZERS["mine"] = kvae.quantizers.FSQ
kvae.MODELS["bigram"] = Bigram
kvae.DATASETS["mine"] = lambda: kvae.data.load("digits")

neighborhood = Neighborhood(kvae.grids.Plane((4, 8)), "gaussian")
weights: jax.Array = kvae.topology.matrix(neighborhood, 0)
codes: jax.Array = kvae.kohonen.nearest_code(z, jnp.zeros((32, 16)))
codewords = kvae.classic.fit_batch(z[0], neighborhood, epochs=2, key=jax.random.key(0))
quality = kvae.measures.perplexity(jnp.ones(32))

try:
    config = kvae.read_config("configs/photos_vqvae.py")
    run = kvae.train(config, "runs/mine")
    run = kvae.load("runs/mine", step="best")
    run = kvae.from_pretrained("shared")
    run = kvae.from_torch("vqvae.safetensors")
    found: dict[str, np.ndarray] = run.encode(run.read_images("images"))
    images: np.ndarray = run.decode(found)
    prior = kvae.load("runs/prior")
    samples: np.ndarray = prior.sample(64, tokenizer=run, key=jax.random.key(0), temperature=0.9)
    sampled: dict[str, np.ndarray] = prior.sample_codes(64, key=jax.random.key(0), label="cats")
    kvae.export.export_run(run, "served", "b", 32)
    model: kvae.Model = kvae.models.build(run.config["model"])
except kvae.InputError as error:
    print(error)

X = np.random.default_rng(0).normal(size=(100, 4))
som = kvae.SOM(grid_shape=(3, 4), topology="hexagonal").fit(X)
labels: np.ndarray = som.predict(X)
groups: np.ndarray = kvae.SOM((3, 4), n_clusters=3).fit(X).cluster_[som.predict_nodes(X)]
classes: np.ndarray = kvae.SOMClassifier((3, 4), unlabeled=-1).fit(X, labels).predict(X)
targets: np.ndarray = kvae.SOMRegressor((3, 4)).fit(X, X[:, 0]).predict(X)
filled: np.ndarray = kvae.SOM((3, 4), missing="ignore").fit(X).impute(X)
columns = kvae.som.SOM(grid_shape=(2, 2))
kvae.plots.hits(som, X).savefig("hits.png")
