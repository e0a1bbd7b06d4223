"""Priors over codes: heads, losses, the order of codes, and sampling with a cache."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kvae import data
from kvae.grids import Plane, Torus
from kvae.models.priors import heads, targets
from kvae.models.priors.embeddings import EMBEDDINGS
from kvae.models.priors.layout import Level, layout_of
from kvae.models.priors.model import Prior
from kvae.models.priors.sampling import Filter, filtered
from kvae.models.priors.targets import LOSSES, Softness
from refusals import refusal

BOOKS = (("top", (1, 2), 3, (3,), "plane", 2), ("bottom", (1, 2, 2), 2, (1, 2), "plane", 2))
"""Two codes of a top level, and two residual codes at each of two places: a sequence of six codes."""

COUNT = 3**2 * 2**4
SEQUENCES = np.array(list(itertools.product(*[range(3)] * 2, *[range(2)] * 4)), np.int32)
"""All images of `BOOKS`, as sequences."""

LAYOUT = layout_of(BOOKS)
CODES = {name: np.asarray(array) for name, array in LAYOUT.to_codes(SEQUENCES).items()}
LABELS = np.arange(COUNT, dtype=np.int32) % 2
KEY = jax.random.key(0)
LEVEL = Level("codebook", 8, Plane((2, 4)), 3, 0)
CODEWORDS = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)


def prior(**fields):
    """A tiny prior, conditional and with two factors."""
    fields = {"head": "address", "conditional": True, "label_names": ("cat", "dog"), **fields}
    return Prior(**{"codebooks": BOOKS, "width": 8, "depth": 1, "num_heads": 2, "dropout": 0.0, **fields})


@functools.cache
def variables():
    """Random variables of `prior()`, larger than the initial ones, so that all inputs matter."""
    batch = {**CODES, "label": LABELS, "mask": np.ones(COUNT, bool)}
    init = functools.partial(prior().init, method="loss_and_metrics", train=False)
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(leaf.dtype), jax.eval_shape(init, KEY, batch)
    )


@jax.jit
def _evaluated(variables, codes, label):
    model = prior()
    apply = functools.partial(model.apply, variables)
    sequence = model.layout.to_sequence(codes)
    hidden, factors = apply(sequence, label, method="hidden"), apply(method="factors")
    rows = [factors[level].log_probabilities(hidden[:, t]) for t, level in enumerate(model.layout.level)]
    likelihood, parts = (apply(codes, label, method=f"log_{name}") for name in ("likelihood", "probability"))
    return likelihood, model.layout.to_sequence(parts), rows


@functools.cache
def evaluated(label=None):
    """Log likelihoods [n], log probabilities of the codes [n, 6], and of all codes, 6 arrays [n, K]."""
    labels = LABELS if label is None else np.full(COUNT, label, np.int32)
    return jax.tree.map(np.asarray, _evaluated(variables(), CODES, labels))


@functools.cache
def samples(options):
    """Sequences of 144 samples, [144, 6], with the keys of `jax.random.split`."""
    sampled = prior().sample(variables(), jax.random.split(KEY, COUNT), label=LABELS, options=options)
    return np.asarray(LAYOUT.to_sequence(sampled))


@functools.cache
def factors(name):
    """Random output weights of a head for hidden vectors [8, 5], all log probabilities [8, 8], and those of code i."""
    head, rng = heads.HEADS[name](level=LEVEL, width=5), np.random.default_rng(1)
    shapes = jax.eval_shape(head.init, KEY, CODEWORDS)
    weights = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)

    @jax.jit
    def probabilities(weights, hidden):
        parts = head.apply(weights, CODEWORDS)
        return parts, parts.log_probabilities(hidden), parts.log_probability(hidden, np.arange(8))

    return jax.tree.map(np.asarray, probabilities(weights, HIDDEN))


HIDDEN = np.random.default_rng(2).normal(size=(8, 5)).astype(np.float32)


def test_sequence_reads_top_then_places_level_by_level():
    assert LAYOUT.level.tolist() == [0, 0, 1, 2, 1, 2]
    assert LAYOUT.row.tolist() == [0, 0, 1, 1, 1, 1]
    assert LAYOUT.column.tolist() == [0, 1, 2, 2, 3, 3]
    assert [(level.name, level.first) for level in LAYOUT.levels] == [("top", 0), ("bottom_0", 3), ("bottom_1", 5)]
    codes = {"top": np.array([[[1, 2]]]), "bottom": np.array([[[[3, 4], [5, 6]]]])}
    assert LAYOUT.to_sequence(codes).tolist() == [[1, 2, 3, 4, 5, 6]]
    jax.tree.map(np.testing.assert_array_equal, LAYOUT.to_codes(LAYOUT.to_sequence(codes)), codes)


@pytest.mark.parametrize("name", heads.HEADS)
def test_head_probabilities_sum_to_one(name):
    _, all_codes, own = factors(name)
    np.testing.assert_allclose(np.exp(all_codes).sum(axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.diag(all_codes), own, rtol=1e-5)


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def test_address_head_is_row_then_column_given_row():
    head, log_probabilities, _ = factors("address")
    rows = log_softmax(HIDDEN[0] @ head.kernels[0] + head.biases[0])
    assert rows.shape == (2,)
    for code in range(8):
        row, column = divmod(code, 4)
        columns = log_softmax(gelu(HIDDEN[0] + head.contexts[0][row]) @ head.kernels[1] + head.biases[1])
        np.testing.assert_allclose(log_probabilities[0, code], rows[row] + columns[column], rtol=1e-4)


def test_cluster_is_a_block_of_the_grid():
    digits = heads.block_and_place(Level("codebook", 32, Plane((4, 8)), 0, 0))
    assert digits[:8].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1], [3, 0], [3, 1]]
    assert digits[8:10].tolist() == [[0, 2], [0, 3]]
    assert len(np.unique(digits, axis=0)) == 32


def test_tied_head_gives_equal_codewords_equal_logits():
    head, twins = heads.CodewordHead(LEVEL, 5), CODEWORDS.copy()
    twins[5] = twins[2]
    kernel = jax.jit(lambda key: head.init_with_output(key, twins)[0].kernels[0])(KEY)
    np.testing.assert_array_equal(kernel[:, 5], kernel[:, 2])


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "one_hot"])
def test_soft_loss_becomes_one_hot(name):
    parts, _, own = factors("softmax")
    cold = jax.jit(lambda: LOSSES[name](parts, HIDDEN, jnp.arange(8), LEVEL, CODEWORDS, Softness(0.0, 1e-3)))()
    np.testing.assert_allclose(cold, -own, rtol=1e-5)


def test_soft_targets_follow_the_distance():
    softness, code = Softness(0.2, 0.7), jnp.array(5)
    smoothed = targets.smoothed(code, LEVEL, CODEWORDS, softness)
    np.testing.assert_allclose(smoothed, [0.025] * 5 + [0.825] + [0.025] * 2)
    distances = np.hypot(*(np.indices((2, 4)) - np.array([1, 1])[:, None, None])).ravel()
    expected = np.exp(-distances / 0.7) / np.exp(-distances / 0.7).sum()
    np.testing.assert_allclose(targets.near_on_grid(code, LEVEL, CODEWORDS, softness), expected, rtol=1e-5)
    # Codewords at the places of their nodes are as far apart as the nodes.
    places = 3.0 * LEVEL.grid.coordinates.astype(np.float32) + 1
    near = jax.jit(lambda: targets.near_codewords(code, LEVEL._replace(dim=2), places, softness))()
    np.testing.assert_allclose(near, expected, rtol=1e-4)


def test_grid_targets_wrap_around_torus():
    level = LEVEL._replace(grid=Torus((1, 8)))
    near = targets.near_on_grid(jnp.array(0), level, CODEWORDS, Softness(0.0, 1.0))
    np.testing.assert_allclose(near[7], near[1], rtol=1e-6)


def test_embeddings_of_axes_add_and_scale_of_codewords_is_ignored():
    def embed(name, vectors):
        module = EMBEDDINGS[name](LEVEL, 4)
        return np.asarray(jax.jit(lambda: module.init_with_output(KEY, vectors)[0])())

    address = embed("address", CODEWORDS).reshape(2, 4, 4)
    np.testing.assert_allclose(address[0, 0] - address[0, 3], address[1, 0] - address[1, 3], atol=1e-6)
    np.testing.assert_allclose(embed("codeword", CODEWORDS), embed("codeword", 5 * CODEWORDS + 3), atol=1e-5)


def test_likelihoods_of_all_images_sum_to_one():
    for label in (0, 1):
        np.testing.assert_allclose(np.exp(evaluated(label)[0]).sum(), 1, rtol=1e-4)


def test_likelihood_obeys_chain_rule():
    likelihood, parts, rows = evaluated()
    np.testing.assert_allclose(likelihood, parts.sum(axis=1), rtol=1e-5)
    for position, row in enumerate(rows):
        np.testing.assert_allclose(parts[:, position], row[np.arange(COUNT), SEQUENCES[:, position]], rtol=1e-5)


def test_probability_depends_only_on_codes_before():
    _, parts, _ = evaluated(0)
    for position in range(6):
        same = (SEQUENCES[:, : position + 1] == SEQUENCES[70, : position + 1]).all(axis=1)
        np.testing.assert_allclose(parts[same, position], parts[70, position], rtol=1e-4)
        if position:
            assert np.ptp(parts[SEQUENCES[:, position] == SEQUENCES[70, position], position]) > 1e-3


def test_label_changes_likelihood():
    assert (np.abs(evaluated(0)[0] - evaluated(1)[0]) > 1e-3).mean() > 0.9


@pytest.mark.parametrize("options", [Filter(), Filter(0.7, 2, 0.9), Filter(temperature=0.0)], ids=str)
def test_cached_sampling_equals_uncached(options):
    sequences, keys = samples(options), jax.random.split(KEY, COUNT)
    _, _, rows = jax.tree.map(np.asarray, _evaluated(variables(), LAYOUT.to_codes(sequences), LABELS))
    for position, row in enumerate(rows):
        row = np.pad(row, ((0, 0), (0, 3 - row.shape[1])), constant_values=-np.inf)
        np.testing.assert_array_equal(_drawn(row, keys, position, options), sequences[:, position])


@jax.jit
def _drawn(log_probabilities, keys, position, options):
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, position)
    return jax.vmap(jax.random.categorical)(keys, filtered(log_probabilities, options))


def test_sample_depends_only_on_its_key():
    keys = jax.random.split(KEY, COUNT)[::-1]
    sampled = prior().sample(variables(), keys, label=LABELS[::-1])
    np.testing.assert_array_equal(LAYOUT.to_sequence(sampled)[::-1], samples(Filter()))


def test_inpainting_changes_only_masked_codes():
    mask = {"top": np.zeros((COUNT, 1, 2), bool), "bottom": np.broadcast_to([[[True, False]] * 2], (COUNT, 1, 2, 2))}
    sampled = prior().sample(variables(), jax.random.split(KEY, COUNT), label=LABELS, codes=CODES, mask=mask)
    np.testing.assert_array_equal(sampled["top"], CODES["top"])
    np.testing.assert_array_equal(sampled["bottom"][..., 1], CODES["bottom"][..., 1])
    assert (sampled["bottom"] != CODES["bottom"]).any()


def test_filter_by_hand():
    logits = jnp.log(jnp.array([0.1, 0.4, 0.4, 0.1]))
    kept = {
        Filter(): [True] * 4,
        Filter(top_k=2): [False, True, True, False],
        Filter(top_k=1): [False, True, False, False],  # of equal ones the first
        Filter(top_k=9): [True] * 4,
        Filter(top_p=0.5): [False, True, True, False],
        Filter(top_p=0.0): [False, True, False, False],
        Filter(top_k=3, top_p=0.85): [False, True, True, False],  # 0.4 / 0.9 + 0.4 / 0.9 > 0.85
        Filter(temperature=0.0): [False, True, False, False],
    }
    program = jax.jit(filtered)
    for options, expected in kept.items():
        assert np.isfinite(program(logits, options)).tolist() == expected, options
    hot = np.exp(program(logits, Filter(temperature=2.0)))
    np.testing.assert_allclose(hot, np.sqrt([0.1, 0.4, 0.4, 0.1]) / np.sqrt([0.1, 0.4, 0.4, 0.1]).sum(), rtol=1e-5)


def test_metrics_of_a_batch():
    model, counted = prior(), np.arange(COUNT) < 100
    batch = {**CODES, "label": LABELS, "mask": counted}
    sums = jax.jit(functools.partial(model.apply, method="batch_sums"))(variables(), batch)
    metrics = model.compute_metrics(jax.tree.map(np.asarray, sums))
    likelihood, _, rows = evaluated()
    np.testing.assert_allclose(metrics["bits"], -likelihood[counted].mean() / 6 / np.log(2), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], metrics["bits"] * np.log(2), rtol=1e-5)
    of_levels = metrics["bits_top"], metrics["bits_bottom_0"], metrics["bits_bottom_1"]
    np.testing.assert_allclose(np.mean(of_levels), metrics["bits"], rtol=1e-5)
    distance = np.abs(np.stack([row.argmax(axis=-1) for row in rows], axis=1) - SEQUENCES)[counted]
    np.testing.assert_allclose(metrics["accuracy"], (distance == 0).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy_near"], (distance < 1.5).mean(), rtol=1e-5)
    assert {*metrics} == {*model.metrics}


def test_data_determine_the_fields():
    dataset = data.load("digit_codes")
    fields = Prior.fields_from_data({"conditional": True}, dataset)
    assert fields["codebooks"] == (("codebook", (8, 8), 17, (17,), "plane", 1),)
    assert fields["label_names"] == tuple("0123456789")
    codewords = Prior(**fields).variables_from_data(dataset)["codebook"]["codewords_0"]
    np.testing.assert_array_equal(codewords[:, 0], np.linspace(0, 1, 17, dtype=np.float32))


def test_mistakes_are_one_line():
    digits = data.load("digits")
    assert "has no codes, which a prior needs" in refusal(Prior.fields_from_data, {"conditional": False}, digits)
    assert "width is 10; it must be a multiple of num_heads (4)" in refusal(Prior, width=10)
    assert "did you mean 'address'?" in refusal(Prior, head="adress")
    name, shape, *rest = ("codebook", (2, 2), 8, (), "plane", 0)
    codes = {name: jnp.zeros((1, 2, 2), jnp.int32)}
    for fields, message in [
        ({"codebooks": ()}, "model.codebooks is ()"),
        ({"embeddings": ("codeword",)}, "the codewords of 'codebook' are unknown"),
        ({"head": "address"}, "has no grid, which the head of this prior needs"),
        ({"codebooks": ((name, (4,), *rest),)}, "it must be (h, w) or (h, w, q)"),
        ({"codebooks": (("other", shape, *rest),)}, "the codes 'other' are missing"),
    ]:
        fields = {"codebooks": ((name, shape, *rest),), "embeddings": ("table",), "head": "softmax", **fields}
        init = functools.partial(Prior(**fields, width=8, num_heads=2).init, method="log_likelihood")
        assert message in refusal(jax.eval_shape, init, KEY, codes)
