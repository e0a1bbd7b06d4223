"""URL-SOM: the network, its fixed filter, its loss, its measures and its views."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kvae import models
from kvae.main import parse
from kvae.models.urlsom import losses as urlsom_measures
from kvae.models.urlsom.filters import radial_filter
from kvae.models.urlsom.views import ViewSettings, random_crop, random_view

NORMALIZATION = dict(mean=(120.0, 110.0, 100.0), std=(60.0, 50.0, 70.0))
SMALL = dict(
    name="urlsom", grid_shape=[3, 4], sigma=1.0, channels=[4, 8], blocks=1, crop_sizes=[6, 8], label_names=list("abc")
)
KEY = {"augmentation": jax.random.key(7), "dropout": jax.random.key(8)}
TRAINING = dict(rngs=KEY, mutable=["batch_stats"])


def images(count, size=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def build(**fields):
    model = models.build({**SMALL, **fields}, **NORMALIZATION)
    return model, jax.jit(model.init)(jax.random.key(0), images(1))


def loss_of(model, variables, images):
    """The objective of a training batch, and the running averages after it."""
    return apply(model, variables, {"image": images}, method="loss_and_metrics", **TRAINING)


def apply(model, variables, *arguments, **options):
    """`model.apply`, compiled: operation by operation it takes many times as long."""
    return jax.jit(functools.partial(model.apply, **options))(variables, *arguments)


def training_views(model, images):
    """The views on which `loss_and_metrics` trains under `KEY`."""
    return model.views(images, model.make_rng("augmentation"))


def batch(count, masked=0):
    labels = (np.arange(count) % 3).astype(np.int32)
    return {"image": images(count), "label": labels, "mask": np.arange(count) < count - masked}


def test_the_map_may_be_a_cube():
    model, variables = build(grid_shape=[2, 2, 3])
    sums = jax.tree.map(np.asarray, apply(model, variables, batch(6), method="batch_sums"))
    assert {"topographic_error_diagonals", "topographic_error_axes"} <= {*model.compute_metrics(sums)}


def test_parameters_are_the_papers_3_4_million_of_which_0_23_project():
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
def test_the_filter_is_a_convolution_over_the_map(kernel):
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
    found = activations.ravel() @ (matrix / matrix[0, 0])
    np.testing.assert_allclose(found.reshape(grid_shape), expected, rtol=1e-5, atol=1e-5)
    assert matrix[22].sum() == pytest.approx(matrix.sum(axis=1).max()) == pytest.approx(1)  # 22 is in the middle


def test_the_papers_student_filters():
    narrow, wide = (np.asarray(radial_filter((1, 4), "student", sigma))[0] for sigma in (np.sqrt(0.5), 3.0))
    np.testing.assert_allclose(narrow / narrow[0], [1, 1 / 2, 1 / 5, 1 / 10], rtol=1e-6)
    np.testing.assert_allclose(wide / wide[0], [1, 18 / 19, 18 / 22, 18 / 27], rtol=1e-6)


def test_the_activations_are_linear_in_the_features():
    """No non-linearity stands between the projection and the convolution."""
    model, variables = build()
    vectors = model.bind(variables).neuron_vectors()
    bound = model.bind(variables)
    x = (images(4) - np.array(model.mean)) / np.array(model.std)
    features = bound.backbone(jnp.asarray(x, jnp.float32), train=False)
    constant = bound.projection.variables["params"]["bias"] @ bound.filter()
    np.testing.assert_allclose(bound(images(4)), features @ vectors.T + constant, rtol=1e-4, atol=1e-4)


def test_the_objective_is_the_papers_loss_of_two_views():
    model, variables = build(similarity_weight=1.5)
    outcome, updated = loss_of(model, variables, images(6))
    views = apply(model, variables, images(6), method=training_views, rngs=KEY)
    assert views.shape == (12, 8, 8, 3)
    activations, _ = apply(model, variables, views, train=True, method="activations", **TRAINING)
    p = jax.nn.softmax(activations)
    np.testing.assert_allclose(
        outcome.loss, urlsom_measures.url_som_loss(urlsom_measures.loss_terms(p[::2], p[1::2]), 1.5), rtol=1e-5
    )
    assert float(jnp.sum(outcome.counts["map"])) == 12
    before, after = jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(updated["batch_stats"])
    assert all(np.any(a != b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("fields", "difference"),
    [
        ({"collapse_weight": 0.0}, lambda metrics, kernel: -metrics["collapse_loss"]),
        ({"similarity_weight": 0.0}, lambda metrics, kernel: -2 * metrics["similarity_loss"]),
        ({"projection_decay": 0.1}, lambda metrics, kernel: 0.1 * jnp.sum(kernel**2)),
    ],
)
def test_each_weight_weighs_its_term(fields, difference):
    losses = []
    for changed in ({}, fields):
        model, variables = build(**changed)
        outcome, _ = loss_of(model, variables, images(6))
        losses.append(outcome.loss)
    expected = difference(outcome.metrics, variables["params"]["projection"]["kernel"])
    np.testing.assert_allclose(losses[1] - losses[0], expected, rtol=1e-3, atol=1e-6)


def test_dropout_is_for_training_only():
    model, variables = build(dropout=0.5)
    np.testing.assert_array_equal(apply(model, variables, images(2)), apply(build()[0], variables, images(2)))
    losses = [loss_of(m, variables, images(6))[0].loss for m in (model, build()[0])]
    assert losses[0] != losses[1]


def test_evaluation_takes_the_running_averages_and_each_image_alone():
    model, variables = build()
    step = jax.jit(functools.partial(model.apply, method="loss_and_metrics", **TRAINING))
    for _ in range(100):
        variables |= step(variables, {"image": images(16)})[1]
    together = apply(model, variables, images(4))
    np.testing.assert_allclose(apply(model, variables, images(4)[:1]), together[:1], rtol=1e-4, atol=1e-5)
    # Averaged over the same batch again and again, they are its mean and variance: training and evaluation agree.
    views = apply(model, variables, images(16), method=training_views, rngs=KEY)
    trained, _ = apply(model, variables, views, train=True, method="activations", **TRAINING)
    evaluated = apply(model, variables, views, train=False, method="activations")
    np.testing.assert_allclose(trained, evaluated, rtol=1e-2, atol=1e-3)


def test_totals_of_batches_add_up_and_padding_counts_for_nothing():
    model, variables = build()
    sums = lambda batch: apply(model, variables, batch, method="batch_sums")  # noqa: E731
    whole = batch(6)
    first = sums({name: array[:3] for name, array in whole.items()})
    padded = {name: np.concatenate([array[:3], array[-1:]]) for name, array in whole.items()}
    padded["mask"] = np.array([True, True, True, False])
    for name, total in sums(padded).items():
        if name not in ("direction", "similarity_loss"):  # of random views, which depend on the number of images
            np.testing.assert_allclose(total, first[name], rtol=1e-5, err_msg=name)
    train_sums = lambda batch: apply(model, variables, batch, method="train_sums")  # noqa: E731
    second = train_sums({name: array[3:] for name, array in whole.items()})
    for name, total in train_sums(whole).items():
        np.testing.assert_allclose(total, first[name] + second[name], rtol=1e-5, err_msg=name)
    winners = apply(model, variables, whole["image"], method="winners")
    table = np.zeros((12, 3))
    np.add.at(table, (winners, whole["label"]), 1)
    np.testing.assert_array_equal(train_sums(whole)["table"], table)


def test_the_summary_is_the_loss_of_all_and_the_selectivity_by_both_labels():
    model, variables = build(similarity_weight=1.0)
    examples = batch(6)
    sums = jax.device_get(apply(model, variables, examples, method="batch_sums"))
    train_table = np.zeros((12, 3))
    train_table[:, 2] = 1
    metrics = model.compute_metrics({**sums, "train_table": train_table, "train_counts": train_table.sum(axis=1)})
    views = apply(model, variables, examples["image"], jax.random.key(0), method="views")
    p = jax.nn.softmax(apply(model, variables, views, train=False, method="activations"))
    np.testing.assert_allclose(
        metrics["loss"], urlsom_measures.url_som_loss(urlsom_measures.loss_terms(p[::2], p[1::2]), 1.0), rtol=1e-5
    )
    assert metrics["neural_selectivity_train"] == 1
    assert metrics["neural_selectivity_transferred"] == pytest.approx(1 / 3)
    assert metrics["dead_neurons"] == 12 - len(
        set(apply(model, variables, examples["image"], method="winners").tolist())
    )
    assert metrics["dead_neurons_train"] == 0


def test_without_labels_nothing_is_said_of_selectivity():
    model, variables = build(label_names=[])
    sums = jax.device_get(apply(model, variables, batch(6), method="batch_sums"))
    metrics = model.compute_metrics({**sums, "train_counts": np.ones(12)})
    assert "table" not in sums
    assert not any("selectivity" in name for name in metrics)


NOTHING = ViewSettings((8, 8), 0.0, 0.4, 0.0, 0.0)
SMOOTH = np.stack([*np.mgrid[0.1:0.9:8j, 0.2:0.8:8j], np.full((8, 8), 0.3)], axis=-1).astype(np.float32)
"""From the upper left to the lower right, in colours that leave room for a jitter."""


def views_of(augmentation, count=64, image=SMOOTH):
    keys = jax.random.split(jax.random.key(0), count)
    views = jax.jit(jax.vmap(random_view, in_axes=(0, None, None)), static_argnums=2)
    return np.asarray(views(keys, image, augmentation))


def test_a_view_with_nothing_changed_is_the_image():
    np.testing.assert_allclose(views_of(NOTHING), np.broadcast_to(SMOOTH, (64, 8, 8, 3)), atol=1e-6)


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_views_flip_and_lose_their_colours_as_often_as_asked(probability):
    flipped = views_of(ViewSettings((8, 8), probability, 0.4, 0.0, 0.0), 400)
    is_flipped = np.all(np.isclose(flipped, SMOOTH[:, ::-1], atol=1e-5), axis=(1, 2, 3))
    assert np.mean(is_flipped) == pytest.approx(probability, abs=0.1)
    assert np.all(is_flipped | np.all(np.isclose(flipped, SMOOTH, atol=1e-5), axis=(1, 2, 3)))
    grey = views_of(ViewSettings((8, 8), 0.0, 0.4, 0.0, probability), 400)
    is_grey = np.ptp(grey, axis=-1).max(axis=(1, 2)) < 1e-6
    assert np.mean(is_grey) == pytest.approx(probability, abs=0.1)
    jittered = views_of(ViewSettings((8, 8), 0.0, 0.4, probability, 0.0), 400)
    assert np.mean(np.abs(jittered - SMOOTH).max(axis=(1, 2, 3)) > 1e-4) == pytest.approx(probability, abs=0.1)
    assert jittered.min() >= 0
    assert jittered.max() <= 1


def test_views_are_a_function_of_the_key():
    twice = [views_of(ViewSettings((4, 8))) for _ in range(2)]
    np.testing.assert_array_equal(*twice)
    assert len(np.unique(twice[0].reshape(64, -1), axis=0)) > 60  # in grey, uncut and unchanged, two can be equal


def test_a_crop_magnifies_and_keeps_within_the_image():
    ramp = np.broadcast_to(np.arange(8, dtype=np.float32)[:, None, None], (8, 8, 3))
    crops = np.stack([random_crop(jax.random.key(i), ramp, 4, 4) for i in range(50)])
    steps = np.diff(crops[:, 1:-1, 0, 0], axis=1)
    np.testing.assert_allclose(np.median(steps, axis=1), 0.5, atol=0.01)  # twice as large
    first, last = crops[:, 0].min(), crops[:, -1].max()
    assert first >= 0
    assert last <= 7
    assert first < 0.6
    assert last > 6.4
    smaller = np.asarray(random_crop(jax.random.key(0), np.ones((8, 8, 3), np.float32), 16, 16))
    assert np.mean(smaller) == pytest.approx(0.25, abs=0.02)  # half as wide and high, on black
