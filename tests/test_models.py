"""VQ-VAE and VQ-VAE-2: the paper's shapes, codes, masks, and invalid input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvae
from kvae import measures, models
from kvae.core.errors import InputError
from modules import apply, init

QUANTIZER = {"name": "kohonen", "grid_shape": [4, 4]}
SMALL = dict(channels=16, residual_channels=8, residual_blocks=1, embedding_dim=8, quantizer=QUANTIZER)
NORMALIZATION = dict(mean=(120.0, 110.0, 100.0), std=(60.0, 50.0, 70.0))


def images(count=4, size=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def build(name, **fields):
    model = models.build({"name": name, **SMALL, **fields}, **NORMALIZATION)
    return model, init(model, jax.random.key(0), images())


def conv(size, inputs, outputs, bias=True):
    return size * size * inputs * outputs + bias * outputs


def blocks(bias):
    return 2 * (conv(3, 128, 32, bias) + conv(1, 32, 128, bias))


# Numbers of parameters, layer by layer as in the papers' table.
STRIDE_4 = conv(4, 3, 64) + conv(4, 64, 128) + conv(3, 128, 128)
TO_IMAGE = conv(4, 128, 64) + conv(4, 64, 3)
VQVAE = STRIDE_4 + blocks(False) + conv(1, 128, 64) + conv(3, 64, 128) + blocks(False) + TO_IMAGE
TOP = conv(4, 128, 64) + conv(3, 64, 128) + blocks(True) + conv(1, 128, 64)
TOP_DECODER = conv(3, 64, 128) + blocks(True) + conv(4, 128, 64)
BOTTOM = STRIDE_4 + blocks(True) + conv(1, 64 + 128, 64)
VQVAE2 = TOP + TOP_DECODER + BOTTOM + conv(4, 64, 64) + conv(3, 64 + 64, 128) + blocks(True) + TO_IMAGE


@pytest.mark.parametrize(
    ("name", "size", "latents", "count"),
    [("vqvae", 32, {"codebook": (8, 8)}, VQVAE), ("vqvae2", 256, {"top": (32, 32), "bottom": (64, 64)}, VQVAE2)],
)
def test_shapes_and_parameter_counts_are_the_papers(name, size, latents, count):
    full = dict(name=name, quantizer={"name": "kohonen", "grid_shape": (16, 32)})
    model = models.build(full, **NORMALIZATION)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8))
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"])) == count
    out = jax.eval_shape(model.apply, shapes, jax.ShapeDtypeStruct((2, size, size, 3), jnp.uint8))
    assert out.images.shape == (2, size, size, 3)
    assert {k: q.codes.shape[1:] for k, q in out.quantized.items()} == latents
    assert all(z.shape[-1] == 64 for z in out.latents.values())
    names = {"vqvae": {"quantizer"}, "vqvae2": {"quantizer_top", "quantizer_bottom"}}[name]
    assert set(shapes["codebook"]) == names


GRADIENT = QUANTIZER | {"name": "gradient"}


@pytest.mark.parametrize(
    ("name", "quantizers"),
    [
        ("vqvae", {"quantizer": QUANTIZER}),
        ("vqvae", {"quantizer": GRADIENT}),
        ("vqvae2", {"quantizer": QUANTIZER}),
        ("vqvae2", {"quantizer": GRADIENT}),
    ],
)
def test_decoding_the_codes_is_the_reconstruction(name, quantizers):
    model, variables = build(name, **quantizers)
    codes = apply(model, variables, images(), method="encode")
    decoded = apply(model, variables, codes, method="decode")
    np.testing.assert_array_equal(decoded, apply(model, variables, images(), method="reconstruct"))
    assert decoded.dtype == np.uint8


@pytest.mark.parametrize("name", ["vqvae", "vqvae2"])
def test_training_and_evaluation_agree(name):
    model, variables = build(name)
    trained = apply(model, variables, images(), train=True)
    evaluated = apply(model, variables, images())
    jax.tree.map(np.testing.assert_array_equal, trained, evaluated)


@pytest.mark.parametrize("name", ["vqvae", "vqvae2"])
def test_batch_sums_add_up_and_ignore_padding(name):
    model, variables = build(name)

    def sums(images, mask):
        return apply(model, variables, {"image": images, "mask": np.array(mask)}, method="batch_sums")

    x, padding = images(), images(seed=1)
    total = sums(x, [True] * 4)
    first = sums(np.concatenate([x[:3], padding[:1]]), [True, True, True, False])
    last = sums(np.concatenate([padding[:3], x[3:]]), [False, False, False, True])
    jax.tree.map(lambda a, b, c: np.testing.assert_allclose(a + b, c, rtol=1e-5), first, last, total)


@pytest.mark.parametrize("name", ["vqvae", "vqvae2"])
def test_metrics_of_an_evaluation_are_those_of_the_loss(name):
    model, variables = build(name)
    x, mask = images(), np.ones(4, bool)
    outcome = apply(model, variables, {"image": x, "mask": mask}, method="loss_and_metrics")
    sums = apply(model, variables, {"image": x, "mask": mask}, method="batch_sums")
    metrics = model.compute_metrics(jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), sums))
    for metric, value in outcome.metrics.items():
        np.testing.assert_allclose(metrics[metric], value, rtol=1e-5)
    expected = measures.psnr(x, apply(model, variables, x, method="reconstruct"))
    np.testing.assert_allclose(metrics["psnr"], np.mean(expected), rtol=1e-5)
    for codebook, codes in apply(model, variables, x, method="encode").items():
        suffix = "" if codebook == "codebook" else f"_{codebook}"
        assert metrics[f"codes_used{suffix}"] == len(np.unique(codes))


def test_bfloat16_loss_is_close_to_float32():
    single, variables = build("vqvae")
    half = single.clone(dtype="bfloat16")
    batch = {"image": images(), "mask": np.ones(4, bool)}
    losses = [apply(model, variables, batch, method="loss_and_metrics").loss for model in (single, half)]
    assert all(loss.dtype == jnp.float32 for loss in losses)
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)
    params = jax.eval_shape(half.init, jax.random.key(0), images())["params"]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((2, 32, 32, 1), np.uint8), r"images are uint8\[2, 32, 32, 1\]; they must be uint8\[b, h, w, 3\]"),
        (np.zeros((2, 32, 32, 3), np.float32), r"images are float32\[2, 32, 32, 3\]"),
        (np.zeros((32, 32, 3), np.uint8), r"images are uint8\[32, 32, 3\]"),
        (np.zeros((2, 30, 32, 3), np.uint8), "images are 30 x 32; height and width must be multiples of 4"),
    ],
)
def test_images_of_wrong_type_or_size_are_rejected(bad, message):
    model, variables = build("vqvae")
    with pytest.raises(InputError, match=message):
        model.apply(variables, bad)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "vqvea"}, "model.name is 'vqvea'; did you mean 'vqvae'"),
        ({"quantizer": "k"}, "model.quantizer is 'k'; it must be a section with a name and fields"),
        ({"quantizer": {"name": "k"}}, "model.quantizer.name is 'k'; it must be one of kohonen, gradient"),
        ({"quantizer": QUANTIZER | {"pull": "x"}}, "model.quantizer has no field 'pull'"),
        ({"num_downsamples": 0}, "model.num_downsamples is 0; it must be an integer from 1 to 8"),
        ({"dtype": "float16"}, "model.dtype is 'float16'"),
        ({"chanels": 8}, "model has no field 'chanels'; did you mean 'channels'"),
        (
            {"quantizer": QUANTIZER | {"neighbourhood": "hard"}},
            "model.quantizer has no field 'neighbourhood'; did you mean 'neighborhood'",
        ),
        ({"quantizer": QUANTIZER | {"grid_shape": [0, 4]}}, r"model.quantizer.grid_shape is \[0, 4\]"),
    ],
)
def test_wrong_fields_are_named_with_the_remedy(fields, message):
    with pytest.raises(InputError, match=message):
        models.validate_model_section({"name": "vqvae", **SMALL, **fields})


def test_a_model_checks_its_values_itself():
    with pytest.raises(InputError, match="num_downsamples is 0; it must be an integer from 1 to 8"):
        models.VQVAE(num_downsamples=0)


def test_quantisers_of_two_levels_are_separate_or_shared():
    top, bottom = QUANTIZER | {"grid_shape": (2, 3)}, {"name": "gradient", "grid_shape": (5,)}
    fields = {name: value for name, value in SMALL.items() if name != "quantizer"} | {"name": "vqvae2"}
    separate = models.build({**fields, "quantizer_top": top, "quantizer_bottom": bottom})
    assert separate.quantizer_top.grid_shape == (2, 3)
    assert isinstance(separate.quantizer_bottom, kvae.GradientVQ)
    mixed = models.build({**fields, "quantizer": QUANTIZER, "quantizer_top": top})
    assert (mixed.quantizer_top.grid_shape, mixed.quantizer_bottom.grid_shape) == ((2, 3), (4, 4))
    with pytest.raises(InputError, match=r"model\.quantizer_bottom is missing; it must be a section"):
        models.validate_model_section({**fields, "quantizer_top": top})
    with pytest.raises(InputError, match=r"model\.quantizer\.grid_shape is 3"):
        models.validate_model_section({**fields, "quantizer": {"name": "kohonen", "grid_shape": 3}})
