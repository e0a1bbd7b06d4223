"""URL-SOM: the network, its fixed filter, its loss, its metrics and its views."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kvae import models
from kvae.main import parse
from kvae.models.urlsom.filters import radial_filter
from kvae.models.urlsom.losses import loss_terms, url_som_loss
from kvae.models.urlsom.views import ViewSettings, random_crop, random_view
from modules import apply, init

NORMALIZATION = dict(mean=(120.0, 110.0, 100.0), std=(60.0, 50.0, 70.0))
SMALL = dict(
    name="urlsom", grid_shape=[3, 4], sigma=1.0, channels=[4, 8], blocks=1, crop_sizes=[6, 8], label_names=list("abc"),
    similarity_weight=1.5,
)  # fmt: skip
KEY = {"augmentation": jax.random.key(7), "dropout": jax.random.key(8)}
TRAINING = dict(rngs=KEY, mutable=["batch_stats"])


def images(count=6, size=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def build(**fields):
    """A model, and the first variables of one with the default fields: these fields change no shape."""
    default = models.build(SMALL, **NORMALIZATION)
    return models.build({**SMALL, **fields}, **NORMALIZATION), init(default, jax.random.key(0), images(1))


def loss_of(model, variables, images):
    """The outcome of a training batch, and the running averages after it."""
    return apply(model, variables, {"image": images}, method="loss_and_metrics", **TRAINING)


def training_views(model, images):
    """The views on which `loss_and_metrics` trains under `KEY`."""
    return model.views(images, model.make_rng("augmentation"))


def batch(mask=(True,) * 6):
    """Six images, those of another seed where the mask is False."""
    mask = np.array(mask)
    padded = np.where(mask[:, None, None, None], images(), images(seed=1))
    return {"image": padded, "label": (np.arange(6) % 3).astype(np.int32), "mask": mask}


def shapes_of_sums(**fields):
    """The model and sums of the right shapes, all ones: nothing is compiled."""
    model = models.build({**SMALL, **fields}, **NORMALIZATION)
    variables = jax.eval_shape(model.init, jax.random.key(0), images(1))
    sums = jax.eval_shape(functools.partial(model.apply, method="batch_sums"), variables, batch())
    return model, jax.tree.map(lambda leaf: np.ones(leaf.shape), sums)


def test_map_may_have_three_dimensions():
    model, sums = shapes_of_sums(grid_shape=[2, 2, 3])
    assert {"topographic_error_diagonals", "topographic_error_axes"} <= {*model.compute_metrics(sums)}


def test_without_labels_there_is_no_selectivity():
    model, sums = shapes_of_sums(label_names=[])
    assert "table" not in sums
    assert not any("selectivity" in name for name in model.compute_metrics({**sums, "train_counts": np.ones(12)}))


def test_parameter_counts_are_the_papers():
    config, _ = parse(["--config=configs/cifar10_urlsom.py"])
    model = models.build(config["model"], **NORMALIZATION)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images(1, 32))["params"]
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    stages = [6 * 16 * 16, 16 * 48 + 5 * 48 * 48, 48 * 256 + 5 * 256 * 256]
    convolutions = 9 * (3 * 16 + sum(stages)) + 16 * 48 + 48 * 256
    normalisation = 2 * (7 * 16 + 6 * 48 + 6 * 256)
    assert count(shapes["backbone"]) == convolutions + normalisation
    assert count(shapes["projection"]) == 256 * 900 + 900 == 231_300
    assert round(count(shapes) / 1e6, 1) == 3.4


@pytest.mark.parametrize("kernel", ["gaussian", "student"])
def test_filter_is_a_convolution_over_the_map(kernel):
    grid_shape, sigma = (5, 9), 1.0
    activations = np.random.default_rng(0).normal(size=grid_shape)
    reach = 3 if kernel == "gaussian" else 9
    i, j = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    squared = i**2 + j**2
    weights = np.exp(-squared / 2) if kernel == "gaussian" else 1 / (1 + squared / 2)
    padded = np.pad(activations, reach)
    expected = [
        [np.sum(padded[r : r + 2 * reach + 1, c : c + 2 * reach + 1] * weights) for c in range(9)] for r in range(5)
    ]
    matrix = np.asarray(radial_filter(grid_shape, kernel, sigma))
    filtered = activations.ravel() @ (matrix / matrix[0, 0])
    np.testing.assert_allclose(filtered.reshape(grid_shape), expected, rtol=1e-5, atol=1e-5)
    assert matrix[22].sum() == pytest.approx(matrix.sum(axis=1).max()) == pytest.approx(1)  # 22 is in the middle


def test_student_filters_are_the_papers():
    narrow, wide = (np.asarray(radial_filter((1, 4), "student", sigma))[0] for sigma in (np.sqrt(0.5), 3.0))
    np.testing.assert_allclose(narrow / narrow[0], [1, 1 / 2, 1 / 5, 1 / 10], rtol=1e-6)
    np.testing.assert_allclose(wide / wide[0], [1, 18 / 19, 18 / 22, 18 / 27], rtol=1e-6)


def test_activations_are_linear_in_the_features():
    model, variables = build()

    def parts(model, images):
        features = model.backbone((images - jnp.array(model.mean)) / jnp.array(model.std), train=False)
        return features, model.neuron_vectors(), model.projection.variables["params"]["bias"] @ model.filter()

    features, vectors, constant = apply(model, variables, images().astype(np.float32), method=parts)
    np.testing.assert_allclose(apply(model, variables, images()), features @ vectors.T + constant, rtol=1e-4, atol=1e-4)


def test_loss_is_the_papers_for_two_views():
    model, variables = build()
    outcome, updated = loss_of(model, variables, images())
    views = apply(model, variables, images(), method=training_views, rngs=KEY)
    assert views.shape == (12, 8, 8, 3)
    activations, _ = apply(model, variables, views, train=True, method="activations", **TRAINING)
    p = jax.nn.softmax(activations)
    np.testing.assert_allclose(outcome.loss, url_som_loss(loss_terms(p[::2], p[1::2]), 1.5), rtol=1e-5)
    assert float(jnp.sum(outcome.counts["map"])) == 12
    before, after = jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(updated["batch_stats"])
    assert all(np.any(a != b) for a, b in zip(before, after, strict=True))


def test_each_weight_multiplies_its_term():
    weights = dict(collapse_weight=0.3, similarity_weight=0.7, projection_decay=0.1)
    model, variables = build(**weights)
    outcome, _ = loss_of(model, variables, images())
    wta, collapse, similarity = (
        outcome.metrics[f"{name}_loss"] for name in ("winner_take_all", "collapse", "similarity")
    )
    np.testing.assert_allclose(outcome.metrics["loss"], wta + 0.3 * collapse + 0.7 * similarity, rtol=1e-5)
    decay = 0.1 * jnp.sum(variables["params"]["projection"]["kernel"] ** 2)
    np.testing.assert_allclose(outcome.loss - outcome.metrics["loss"], decay, rtol=1e-3)


def test_dropout_is_for_training_only():
    model, variables = build(dropout=0.5)
    plain, _ = build()
    np.testing.assert_array_equal(apply(model, variables, images()), apply(plain, variables, images()))
    assert loss_of(model, variables, images())[0].loss != loss_of(plain, variables, images())[0].loss


def test_evaluation_uses_running_averages():
    model, variables = build()
    for _ in range(100):
        variables = variables | loss_of(model, variables, images())[1]
    together = apply(model, variables, images())
    np.testing.assert_allclose(apply(model, variables, images()[:1]), together[:1], rtol=1e-4, atol=1e-5)
    # After many updates with the same batch, the averages are its mean and variance: training and evaluation agree.
    views = apply(model, variables, images(), method=training_views, rngs=KEY)
    trained, _ = apply(model, variables, views, train=True, method="activations", **TRAINING)
    evaluated = apply(model, variables, views, train=False, method="activations")
    np.testing.assert_allclose(trained, evaluated, rtol=1e-2, atol=1e-3)


def test_batch_sums_add_up_and_ignore_padding():
    model, variables = build()
    half = np.arange(6) < 3
    first, last, total = (
        jax.device_get(apply(model, variables, batch(mask), method="batch_sums"))
        for mask in (half, ~half, np.ones(6, bool))
    )
    for name, value in total.items():
        np.testing.assert_allclose(first[name] + last[name], value, rtol=1e-5, err_msg=name)
    train_sums = apply(model, variables, batch(), method="train_sums")
    for name, value in train_sums.items():
        np.testing.assert_allclose(value, total[name], rtol=1e-6, err_msg=name)
    winners = apply(model, variables, images(), method="winners")
    table = np.zeros((12, 3))
    np.add.at(table, (winners, batch()["label"]), 1)
    np.testing.assert_array_equal(train_sums["table"], table)


def test_metrics_are_the_loss_and_selectivity_by_both_labels():
    model, variables = build()
    sums = jax.device_get(apply(model, variables, batch(), method="batch_sums"))
    train_table = np.zeros((12, 3))
    train_table[:, 2] = 1
    metrics = model.compute_metrics({**sums, "train_table": train_table, "train_counts": train_table.sum(axis=1)})
    views = apply(model, variables, images(), jax.random.key(0), method="views")
    p = jax.nn.softmax(apply(model, variables, views, train=False, method="activations"))
    np.testing.assert_allclose(metrics["loss"], url_som_loss(loss_terms(p[::2], p[1::2]), 1.5), rtol=1e-5)
    assert metrics["neural_selectivity_train"] == 1
    assert metrics["neural_selectivity_transferred"] == pytest.approx(1 / 3)
    assert metrics["dead_neurons"] == 12 - len(set(apply(model, variables, images(), method="winners").tolist()))
    assert metrics["dead_neurons_train"] == 0


SMOOTH = np.stack([*np.mgrid[0.1:0.9:8j, 0.2:0.8:8j], np.full((8, 8), 0.3)], axis=-1).astype(np.float32)
"""A gradient from the upper left to the lower right, in colours that no jitter clips."""


@functools.partial(jax.jit, static_argnums=1)
def draw_views(keys, crop_sizes, probabilities):
    draw = lambda key: random_view(key, SMOOTH, ViewSettings(crop_sizes, probabilities[0], 0.4, *probabilities[1:]))  # noqa: E731
    return jax.vmap(draw)(keys)


def views_of(flip=0.0, jitter=0.0, greyscale=0.0, crop_sizes=(8, 8)):
    """400 views: float32 [400, 8, 8, 3]."""
    return np.asarray(draw_views(jax.random.split(jax.random.key(0), 400), crop_sizes, (flip, jitter, greyscale)))


def test_a_view_without_changes_is_the_image():
    np.testing.assert_allclose(views_of(), np.broadcast_to(SMOOTH, (400, 8, 8, 3)), atol=1e-6)


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_flips_jitter_and_greyscale_have_their_probabilities(probability):
    flipped = views_of(flip=probability)
    is_flipped = np.all(np.isclose(flipped, SMOOTH[:, ::-1], atol=1e-5), axis=(1, 2, 3))
    assert np.mean(is_flipped) == pytest.approx(probability, abs=0.1)
    assert np.all(is_flipped | np.all(np.isclose(flipped, SMOOTH, atol=1e-5), axis=(1, 2, 3)))
    is_grey = np.ptp(views_of(greyscale=probability), axis=-1).max(axis=(1, 2)) < 1e-6
    assert np.mean(is_grey) == pytest.approx(probability, abs=0.1)
    jittered = views_of(jitter=probability)
    assert np.mean(np.abs(jittered - SMOOTH).max(axis=(1, 2, 3)) > 1e-4) == pytest.approx(probability, abs=0.1)
    assert jittered.min() >= 0
    assert jittered.max() <= 1


def test_views_are_a_function_of_the_key():
    views = [views_of(0.5, 0.8, 0.5, (4, 8)) for _ in range(2)]
    np.testing.assert_array_equal(*views)
    assert len(np.unique(views[0].reshape(400, -1), axis=0)) > 360  # grey, uncropped and unchanged views can be equal


def test_a_crop_magnifies_and_stays_inside_the_image():
    ramp = np.broadcast_to(np.arange(8, dtype=np.float32)[:, None, None], (8, 8, 3))
    crop = jax.jit(jax.vmap(random_crop, in_axes=(0, None, None, None)))
    crops = np.asarray(crop(jax.random.split(jax.random.key(0), 50), ramp, 4, 4))
    steps = np.diff(crops[:, 1:-1, 0, 0], axis=1)
    np.testing.assert_allclose(np.median(steps, axis=1), 0.5, atol=0.01)  # magnified twice
    first, last = crops[:, 0].min(), crops[:, -1].max()
    assert first >= 0
    assert last <= 7
    assert first < 0.6
    assert last > 6.4
    smaller = np.asarray(crop(jax.random.split(jax.random.key(0), 50), np.ones((8, 8, 3), np.float32), 16, 16))[0]
    assert np.mean(smaller) == pytest.approx(0.25, abs=0.02)  # half as wide and high, on black
