"""Random changes of training images, and the training that uses them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kvae.core.errors import InputError
from kvae.models.autoencoders.augmentations import AUGMENTATIONS, augment
from runs import images, rows, run

pytestmark = pytest.mark.usefixtures("undrawn")

COUNT = 64


def changed(name, seed=0):
    """Images before and after an augmentation: uint8 [64, 32, 32, 3] twice."""
    before = images(COUNT, seed)
    return before, np.asarray(jax.jit(AUGMENTATIONS[name])(jax.random.key(seed), before))


def ways(before, after, candidates):
    """For each image, the number of the candidate that it became: int [64]."""
    equal = np.array([[np.array_equal(make(x), y) for make in candidates] for x, y in zip(before, after, strict=True)])
    assert (equal.sum(axis=1) == 1).all(), "an image became something else"
    return equal.argmax(axis=1)


@pytest.mark.parametrize(
    ("name", "candidates"),
    [
        ("flip_horizontal", [lambda x: x, lambda x: x[:, ::-1]]),
        ("rot90", [lambda x, turns=turns: np.rot90(x, turns) for turns in range(4)]),
    ],
)
def test_flips_and_turns_are_drawn_evenly_for_each_image(name, candidates):
    drawn = np.bincount(ways(*changed(name), candidates), minlength=len(candidates))
    expected = COUNT / len(candidates)
    assert (np.abs(drawn - expected) < 4 * np.sqrt(expected)).all()


def test_a_shift_is_a_cut_of_the_mirrored_image():
    padded = [np.pad(x, ((4, 4), (4, 4), (0, 0)), mode="reflect") for x in changed("translate")[0]]
    corners = [(top, left) for top in range(9) for left in range(9)]
    found = set()
    for big, after in zip(padded, changed("translate")[1], strict=True):
        matches = [(y, x) for y, x in corners if np.array_equal(big[y : y + 32, x : x + 32], after)]
        assert len(matches) == 1
        found.add(matches[0])
    assert len(found) > COUNT / 3


def test_no_names_change_nothing_and_names_are_applied_in_order():
    before, key = images(4, 0), jax.random.key(1)
    np.testing.assert_array_equal(augment(key, before, ()), before)
    flip_key, shift_key = jax.random.split(key)
    expected = AUGMENTATIONS["translate"](shift_key, AUGMENTATIONS["flip_horizontal"](flip_key, before))
    np.testing.assert_array_equal(augment(key, before, ("flip_horizontal", "translate")), expected)


def test_turning_takes_square_images():
    with pytest.raises(InputError, match="'rot90' needs square images; these are 8 x 16"):
        augment(jax.random.key(0), jnp.zeros((2, 8, 16, 3), jnp.uint8), ("rot90",))


def test_training_sees_changed_images_and_evaluation_the_images_themselves(make_config, tmp_path):
    plain, augmented = make_config("vqvae"), make_config("vqvae")
    for config, name in ((plain, "plain"), (augmented, "augmented")):
        config["optimizer"]["learning_rate"] = 0.0
        config["model"]["quantizer"]["decay"] = 1 - 1e-9  # 1 in float32
        config["model"]["augmentations"] = () if config is plain else ("flip_horizontal", "rot90", "translate")
        run(config, tmp_path / name)
    # Nothing is learned, so evaluations differ only if they see other images; training losses differ.
    for one, other in zip(rows(tmp_path / "plain"), rows(tmp_path / "augmented"), strict=True):
        assert one["train/loss"] != other["train/loss"]
        assert one.get("valid/loss", 0.0) == pytest.approx(other.get("valid/loss", 0.0), rel=1e-6)
