"""Random augmentations of training images, by themselves and in the loss of a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvae
from kvae.core.errors import InputError
from kvae.models import VQVAE
from kvae.models.autoencoders.augmentations import AUGMENTATIONS, augment
from modules import apply, init
from runs import images

COUNT = 64


def augmented(name, seed=0):
    """Images before and after an augmentation: uint8 [64, 32, 32, 3] twice."""
    before = images(COUNT, seed)
    return before, np.asarray(jax.jit(AUGMENTATIONS[name])(jax.random.key(seed), before))


def chosen(before, after, candidates):
    """The index of the candidate that each image was mapped by: int [64]."""
    equal = np.array([[np.array_equal(make(x), y) for make in candidates] for x, y in zip(before, after, strict=True)])
    assert (equal.sum(axis=1) == 1).all(), "an image was mapped by none of the candidates"
    return equal.argmax(axis=1)


@pytest.mark.parametrize(
    ("name", "candidates"),
    [
        ("flip_horizontal", [lambda x: x, lambda x: x[:, ::-1]]),
        ("rot90", [lambda x, turns=turns: np.rot90(x, turns) for turns in range(4)]),
    ],
)
def test_flips_and_rotations_are_equally_likely_for_each_image(name, candidates):
    drawn = np.bincount(chosen(*augmented(name), candidates), minlength=len(candidates))
    expected = COUNT / len(candidates)
    assert (np.abs(drawn - expected) < 4 * np.sqrt(expected)).all()


def test_translation_crops_the_reflected_image():
    before, after = augmented("translate")
    corners = [(top, left) for top in range(9) for left in range(9)]
    drawn = set()
    for image, translated in zip(before, after, strict=True):
        padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="reflect")
        matches = [(y, x) for y, x in corners if np.array_equal(padded[y : y + 32, x : x + 32], translated)]
        assert len(matches) == 1
        drawn.add(matches[0])
    assert len(drawn) > COUNT / 3


def test_augmentations_are_applied_in_order():
    before, key = images(4, 0), jax.random.key(1)
    np.testing.assert_array_equal(augment(key, before, ()), before)
    flip_key, translate_key = jax.random.split(key)
    expected = AUGMENTATIONS["translate"](translate_key, AUGMENTATIONS["flip_horizontal"](flip_key, before))
    np.testing.assert_array_equal(augment(key, before, ("flip_horizontal", "translate")), expected)


def test_rot90_rejects_other_than_square_images():
    with pytest.raises(InputError, match="images are 8 x 16; they must be square for augmentation 'rot90'"):
        augment(jax.random.key(0), jnp.zeros((2, 8, 16, 3), jnp.uint8), ("rot90",))


def test_training_augments_images_and_evaluation_does_not():
    names = ("flip_horizontal", "rot90", "translate")
    fields = dict(channels=8, residual_channels=4, residual_blocks=0, embedding_dim=4)
    plain = VQVAE(**fields, quantizer=kvae.KohonenVQ((4, 4)))
    model = plain.clone(augmentations=names)
    batch = {"image": images(4, 0), "mask": np.ones(4, bool)}
    variables, rngs = init(plain, jax.random.key(0), batch["image"]), {"augmentation": jax.random.key(1)}

    def draw(module, drawn_from):
        return augment(module.make_rng("augmentation"), drawn_from, names)

    seen = apply(model, variables, batch["image"], method=draw, rngs=rngs)
    expected = apply(plain, variables, {**batch, "image": seen}, method="loss_and_metrics").loss
    unchanged = apply(plain, variables, batch, method="loss_and_metrics").loss
    trained = apply(model, variables, batch, method="loss_and_metrics", rngs=rngs).loss
    np.testing.assert_allclose(trained, expected, rtol=1e-6)
    assert trained != unchanged
    sums = [apply(module, variables, batch, method="batch_sums") for module in (plain, model)]
    jax.tree.map(np.testing.assert_array_equal, *sums)
