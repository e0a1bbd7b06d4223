"""The conformance kit: the quantisers of kvae pass it, and it finds the faults of others."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import kvae
from kvae import testing
from kvae.testing import Output, subjects

# The kit's own example runs it for FSQ. The other NNX layers equal the linen layers bit for bit: see test_nnx.
LAYERS = {
    "map": lambda: kvae.KohonenVQ((4, 8)),
    "EMA-VQ": lambda: kvae.KohonenVQ((4, 8), "none"),
    "torus": lambda: kvae.KohonenVQ((4, 8), "gaussian", topology="torus"),
    "cosine, rotation": lambda: kvae.KohonenVQ((4, 8), metric="cosine", gradient="rotation"),
    "restarts": lambda: kvae.KohonenVQ((4, 8), "none", restart_below=0.5),
    "gradient": lambda: kvae.GradientVQ((4, 8), "hard"),
    "SimVQ": lambda: kvae.SimVQ(codebook_size=32),
    "IBQ": lambda: kvae.IBQ(codebook_size=32),
    "LFQ": lambda: kvae.LFQ(bits=5),
    "residual": lambda: kvae.ResidualVQ(kvae.KohonenVQ((4, 8)), depth=2),
    "residual, dropout": lambda: kvae.ResidualVQ(kvae.KohonenVQ((4, 8)), depth=2, dropout=1.0),
    "grouped": lambda: kvae.GroupedVQ(kvae.KohonenVQ((4, 8)), groups=2),
    "NNX map": lambda: kvae.nnx.KohonenVQ(16, grid_shape=(4, 8), rngs=nnx.Rngs(0)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_quantisers_of_kvae_conform(name):
    without = [] if name in ("map", "residual") else ["compiled_is_eager"]  # slow: one of each kind
    if "dropout" in name:  # training drops codebooks, evaluation does not
        without += ["evaluation_is_training_without_learning"]
    testing.check_quantizer(LAYERS[name], without=without)


class Ordinary:
    """EMA-VQ as it is often written. Each subclass below overrides one method, and fails the kit."""

    decay = 0.9

    def init(self, key, z):
        return {"codewords": jax.random.normal(key, (8, z.shape[-1])), "counts": jnp.ones(8)}

    def lookup(self, state, z, dtype):
        return jnp.argmin(jnp.sum((z[..., None, :] - state["codewords"]) ** 2, axis=-1), axis=-1)

    def learns(self, train):
        return train

    def through(self, z, nearest):
        return z + jax.lax.stop_gradient(nearest - z)

    def members(self, z, codes, mask):
        members = jax.nn.one_hot(codes, 8)
        return members if mask is None else members * mask[..., None]

    def apply(self, state, z, train, mask):
        z32 = z.astype(jnp.float32) if mask is None else jnp.where(mask[..., None], z, 0.0)
        z32 = jnp.where(jnp.isfinite(z32), z32, 0.0)
        codes = self.lookup(state, z32, z.dtype)
        nearest = state["codewords"][codes]
        members = jnp.moveaxis(self.members(z, codes, mask), -1, 0)
        sums = jnp.tensordot(members, z32, z32.ndim - 1)
        counts = self.decay * state["counts"] + (1 - self.decay) * jnp.sum(members, axis=range(1, members.ndim))
        sums = self.decay * state["codewords"] * state["counts"][:, None] + (1 - self.decay) * sums
        new = {"codewords": sums / counts[:, None], "counts": counts}
        weights = jnp.ones(z.shape[:-1]) if mask is None else mask
        loss = jnp.sum(weights * jnp.mean((z32 - nearest) ** 2, axis=-1)) / jnp.sum(weights)
        out = Output(self.through(z, nearest.astype(z.dtype)), codes, loss)
        return out, new if self.learns(train) else state


class LearnsInEvaluation(Ordinary):
    def learns(self, train):
        return True


class NoGradient(Ordinary):
    def through(self, z, nearest):
        return jax.lax.stop_gradient(nearest)


class ComparesInHalf(Ordinary):
    def lookup(self, state, z, dtype):
        return super().lookup({"codewords": state["codewords"].astype(dtype)}, z.astype(dtype), dtype)


class IgnoresTheMask(Ordinary):
    def members(self, z, codes, mask):
        return jax.nn.one_hot(codes, 8)


class KeepsNaN(Ordinary):
    def members(self, z, codes, mask):
        return super().members(z, codes, mask) * (1 + 0 * z[..., :1])


class FloatCodes(Ordinary):
    def apply(self, state, z, train, mask):
        out, state = Ordinary().apply(state, z, train, mask)
        return out._replace(codes=out.codes.astype(jnp.float32)), state


UNSHARDED = {"one_device_is_many"}  # its gather over a sharded batch is refused under Explicit axes


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (LearnsInEvaluation, {"evaluation_moves_nothing"}),
        (NoGradient, {"gradients_reach_the_encoder"}),
        (IgnoresTheMask, {"masked_positions_do_not_count"}),
        (KeepsNaN, {"a_nan_stays_where_it_is"}),
        (FloatCodes, {"codes_are_integers_in_range"}),
        (ComparesInHalf, {"half_precision_is_compared_in_single"}),
    ],
)
def test_kit_names_the_violated_law(kind, expected):
    with pytest.raises(AssertionError) as caught:
        testing.check_quantizer(kind, without=UNSHARDED)
    assert {line.partition(" ")[0] for line in str(caught.value).splitlines()} == expected


class Unbounded(kvae.FSQ):
    """Rounds elements beyond the outermost levels, as the margin does from 1,002 levels on."""

    def _codes(self, nearest):
        return super()._codes(nearest) + jnp.where(nearest[..., 0] == 1, self.codebook_size, 0)


class ClipsCodes(kvae.FSQ):
    def lookup(self, codes):
        return super().lookup(jnp.clip(codes, 0, self.codebook_size - 1))


class RestartsAtMeans(kvae.KohonenVQ):
    def update(self, statistics):
        drawn = statistics.samples
        mean = drawn.sums.mean(axis=0) / drawn.counts.mean() * drawn.counts[:, None]
        super().update(statistics._replace(samples=drawn._replace(sums=mean)))


class CountsDropped(kvae.ResidualVQ):
    def quantize(self, z, *, mask=None, train=False):
        out = super().quantize(z, mask=mask, train=train)
        return out.replace(counts=out.counts + 1, codes=jnp.maximum(out.codes, 0))


class IgnoresViews(kvae.nnx.FSQ):
    def __init__(self):
        super().__init__(16, levels=(3, 3), rngs=nnx.Rngs(0))
        self.seen = kvae.nnx.Codebook(jnp.zeros(()))

    def __call__(self, z, *, train=None, mask=None):
        self.seen.set_value(self.seen.get_value() + 1)
        return super().__call__(z, train=train, mask=mask)


@pytest.mark.parametrize(
    ("kind", "law", "message"),
    [
        (lambda: Unbounded((4, 4)), "far_vectors_saturate", "a code is .*, but K is 16"),
        (lambda: ClipsCodes((4, 4)), "lookup_refuses_codes_out_of_range", "lookup accepts the code"),
        (
            lambda: RestartsAtMeans((4, 8), "none", restart_below=0.5),
            "restarts_take_vectors_of_the_batch",
            "a code restarts at a mean",
        ),
        (
            lambda: CountsDropped(kvae.KohonenVQ((4, 8)), depth=3, dropout=0.5),
            "dropped_codebooks_are_left_out",
            "no codebook is ever dropped",
        ),
        (IgnoresViews, "views_stop_learning", "learns in evaluation"),
    ],
)
def test_kit_finds_faults_of_layers_of_kvae(kind, law, message):
    with pytest.raises(AssertionError, match=message):
        testing.CHECKS[law](testing.Trial(subjects.as_subject(kind()), 16))


def test_kit_takes_any_flax_layer_with_the_same_call():
    class Nearest(nn.Module):
        @nn.compact
        def __call__(self, z, *, train=False, mask=None):
            words = self.param("words", nn.initializers.normal(1.0), (8, z.shape[-1]))
            codes = jnp.argmin(jnp.sum((z[..., None, :].astype(jnp.float32) - words) ** 2, axis=-1), axis=-1)
            weights = jnp.ones(z.shape[:-1]) if mask is None else mask
            loss = jnp.sum(weights * jnp.mean((z - words[codes]) ** 2, axis=-1)) / jnp.sum(weights)
            return Output(z + jax.lax.stop_gradient(words[codes].astype(z.dtype) - z), codes, loss)

    assert set(testing.failures(Nearest)) - UNSHARDED == set()
