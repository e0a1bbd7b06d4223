"""Measures, against closed forms, cases worked by hand, scikit-image, scikit-learn and MiniSom."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from minisom import MiniSom
from scipy.stats import entropy
from skimage.metrics import peak_signal_noise_ratio
from sklearn import manifold

from kvae import kohonen, measures
from kvae.core.errors import InputError
from kvae.models.urlsom import losses as urlsom_measures
from kvae.topology import Cylinder, Hexagonal, HexagonalTorus, Plane, Torus

RNG = np.random.default_rng(0)


def assert_close(actual, expected, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=rtol, atol=atol)


# Reconstruction.


def test_squared_error_of_each_example():
    x, x_hat = jnp.array([[[1.0, 2.0]], [[0.0, 0.0]]]), jnp.array([[[1.0, 4.0]], [[1.0, -3.0]]])
    assert_close(measures.squared_error(x, x_hat), [2.0, 5.0])


def test_to_uint8_undoes_the_normalisation_and_clips():
    images = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    mean, std = jnp.array([125.3, 123.0, 113.9]), jnp.array([63.0, 62.1, 66.7])
    np.testing.assert_array_equal(measures.to_uint8((images - mean) / std, mean, std), images)
    np.testing.assert_array_equal(measures.to_uint8(jnp.array([-9.0, 254.6, 999.0]), 0.0, 1.0), [0, 255, 255])


def test_psnr_agrees_with_scikit_image():
    images, others = RNG.integers(0, 256, (2, 4, 8, 8, 3), dtype=np.uint8)
    expected = [peak_signal_noise_ratio(a, b, data_range=255) for a, b in zip(images, others, strict=True)]
    assert_close(measures.psnr(images, others), expected)


def test_psnr_of_identical_images_is_finite():
    image = np.full((32, 32, 3), 7, np.uint8)
    off_by_one = image.copy()
    off_by_one[3, 4, 1] += 1
    assert_close(measures.psnr(image, image), 83.0, atol=0.01)
    assert measures.psnr(image, image) == measures.psnr(image, off_by_one)


# Codebook use.


def test_perplexity_and_codes_used():
    assert_close(measures.perplexity(jnp.full(512, 3)), 512.0)
    assert_close(measures.perplexity(jnp.array([0, 9, 0])), 1.0)
    assert_close(measures.perplexity(jnp.zeros(4)), 1.0)
    assert_close(measures.perplexity(jnp.array([2, 1, 1, 0])), 2**1.5)
    counts = RNG.integers(0, 50, 100)
    assert_close(measures.perplexity(counts), np.exp(entropy(counts)))
    assert measures.codes_used(jnp.array([2, 1, 1, 0])) == 3


def test_shift_stops_at_the_border():
    codes = jnp.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(Plane((3, 4)).shift(codes, 1), [[5, 6, 7, 7], [9, 10, 11, 11], [9, 10, 11, 11]])
    np.testing.assert_array_equal(Plane((3, 4)).shift(codes, (-1, 2)), [[2, 3, 3, 3], [2, 3, 3, 3], [6, 7, 7, 7]])
    np.testing.assert_array_equal(Plane((3, 4)).shift(codes, 0), codes)


def test_shift_on_a_line_moves_the_code():
    shifted = Plane((12,)).shift(jnp.array([[0, 5], [10, 11]]), -3)
    np.testing.assert_array_equal(shifted, [[0, 2], [7, 8]])
    assert shifted.dtype == jnp.int32


# Map quality.


@pytest.fixture(scope="module")
def som():
    """A half-trained MiniSom map of 5 x 7 nodes: some vectors are topographic errors, some are not."""
    data = RNG.normal(size=(300, 3))
    som = MiniSom(5, 7, 3, sigma=1.0, learning_rate=0.5, random_seed=0)
    som.train(data, 300)
    return som, data, som.get_weights().reshape(35, 3).astype(np.float32)


def test_map_quality_agrees_with_minisom(som):
    som, data, codewords = som
    assert_close(measures.quantization_error(data, codewords), som.quantization_error(data))
    error = measures.topographic_error(data, codewords, Plane((5, 7)), "8")
    assert 0.1 < error < 0.9
    assert_close(error, som.topographic_error(data))
    u_matrix = measures.u_matrix(codewords, Plane((5, 7)), "8")
    assert_close(u_matrix / u_matrix.max(), som.distance_map(scaling="mean"))


def test_topographic_error_by_hand():
    # On a 2 x 3 grid: 0 and 4 are diagonal neighbours, 0 and 1 share an axis, 0 and 5 are not neighbours.
    codewords = jnp.array([[0.0], [1.0], [10.0], [20.0], [-1.5], [-30.0]])
    z = jnp.array([[0.4], [-0.6], [-16.0], [15.0]])  # nearest two: 0 1, 0 4, 4/5, 2/3
    assert measures.topographic_errors(z, codewords, Plane((2, 3)), "8") == 1
    assert measures.topographic_errors(z, codewords, Plane((2, 3)), "4") == 2
    assert measures.topographic_error(z, codewords, Plane((2, 3)), "4") == 0.5
    for adjacency in ("4", "8"):  # on a line: 0 1 and 4 5 and 2 3 are adjacent
        assert measures.topographic_errors(z, codewords, Plane((6,)), adjacency) == 1
    assert measures.topographic_error(z, codewords[:1], Plane((1,))) == 0
    # In a 2 x 2 x 2 cube 0 and 7 differ along three axes: diagonal neighbours. In 1 x 1 x 3, 0 and 2 are two apart.
    codewords = jnp.array([[0.0], [9.0], [9.0], [9.0], [9.0], [9.0], [9.0], [1.0]])
    assert measures.topographic_errors(jnp.array([[0.4]]), codewords, Plane((2, 2, 2))) == 0
    assert measures.topographic_errors(jnp.array([[0.4]]), codewords, Plane((2, 2, 2)), "axes") == 1
    assert measures.topographic_errors(jnp.array([[0.4]]), jnp.array([[0.0], [9.0], [1.0]]), Plane((1, 1, 3))) == 1


@pytest.mark.parametrize(
    ("grid", "counts"),
    [
        (Plane((5, 5)), (8, 4)),
        (Torus((5, 5)), (8, 4)),
        (Hexagonal((5, 5)), (6,)),
        (HexagonalTorus((6, 5)), (6,)),
        (Cylinder((5, 5)), (8, 4)),
        (Plane((5, 5, 5)), (26, 6)),
        (Torus((5, 5, 5)), (26, 6)),
        (Plane((3, 3, 3, 3)), (80 - 16, 8)),  # less its corners
    ],
)
def test_number_of_neighbors_of_an_inner_node(grid, counts):
    near = [grid.neighbors(reach)[1].sum(axis=0).max() for reach in grid.adjacency.values()]
    assert tuple(near) == counts


def test_topographic_error_takes_the_lowest_codes_of_a_tie():
    codewords = jnp.array([[5.0], [1.0], [9.0], [1.0], [1.0]])  # 1, 3 and 4 are equally near; 1 and 3 are two apart
    assert measures.topographic_errors(jnp.zeros((1, 1)), codewords, Plane((5,))) == 1
    assert measures.topographic_errors(jnp.full((1, 1), 5.4), codewords, Plane((5,))) == 1  # 0, then 2 at 3.6
    assert measures.topographic_errors(jnp.full((1, 1), 4.6), codewords, Plane((5,))) == 0  # 0, then 1 at 3.6


def test_topographic_errors_add_up_over_masked_batches_and_chunks(som, monkeypatch):
    _, data, codewords = som
    data = data[:293]
    whole = measures.topographic_errors(data, codewords, Plane((5, 7)))
    mask = np.arange(293) < 130
    parts = [measures.topographic_errors(data, codewords, Plane((5, 7)), mask=part) for part in (mask, ~mask)]
    assert sum(parts) == whole
    monkeypatch.setattr(kohonen, "SCORES_PER_CHUNK", {"cpu": 35 * 47})  # 7 chunks; 293 is a prime
    assert measures.topographic_errors(data[None], codewords, Plane((5, 7))) == whole


@pytest.mark.parametrize(("grid_shape", "n_neighbors"), [((40,), 4), ((5, 8), 1), ((5, 8), 7), ((2, 4, 5), 4)])
def test_rank_measures_agree_with_scikit_learn(grid_shape, n_neighbors):
    codewords = RNG.normal(size=(40, 3)).astype(np.float32)
    # A small multiple of the codewords, added as coordinates, orders ties on the grid by distance in space.
    grid = np.concatenate([Plane(grid_shape).coordinates, 1e-3 * codewords], axis=1)
    expected = manifold.trustworthiness(codewords, grid, n_neighbors=n_neighbors)
    assert_close(measures.trustworthiness(codewords, Plane(grid_shape), n_neighbors), expected)
    expected = manifold.trustworthiness(grid, codewords, n_neighbors=n_neighbors)
    assert_close(measures.neighborhood_preservation(codewords, Plane(grid_shape), n_neighbors), expected)


def test_rank_measures_by_hand():
    codewords = jnp.array([[0.0], [2.0], [1.0], [3.0]])
    # Nearest on the line: 1 2 1 2, the ties of the middle two ordered by space; their ranks in space: 2 1 2 2.
    assert_close(measures.trustworthiness(codewords, Plane((4,)), 1), 1 - 2 / 16 * 3)
    # Nearest in space: 2 2 0 1, the tie ordered by code; their ranks on the line: 2 1 3 2.
    assert_close(measures.neighborhood_preservation(codewords, Plane((4,)), 1), 1 - 2 / 16 * 4)


@pytest.mark.parametrize("measure", [measures.trustworthiness, measures.neighborhood_preservation])
def test_rank_measures_of_extreme_maps(measure):
    perfect = jnp.asarray(0.1 * Plane((8, 9)).coordinates, jnp.float32)
    assert measure(perfect, Plane((8, 9)), 5) == 1
    assert 0.3 < measure(jax.random.permutation(jax.random.key(0), perfect), Plane((8, 9)), 5) < 0.7
    assert measure(jnp.zeros_like(perfect), Plane((8, 9)), 5) < 0.7


def test_u_matrix_by_hand():
    codewords = jnp.array([[0.0], [1.0], [3.0], [7.0]])
    assert_close(measures.u_matrix(codewords, Plane((2, 2)), "4"), [[2.0, 3.5], [3.5, 5.0]])
    assert_close(measures.u_matrix(codewords, Plane((2, 2)), "8"), [[11 / 3, 3.0], [3.0, 17 / 3]])
    assert_close(measures.u_matrix(codewords, Plane((4,))), [1.0, 1.5, 3.0, 4.0])
    assert_close(measures.u_matrix(codewords[:1], Plane((1, 1))), [[0.0]])
    # A ring, where 0 and 7 are neighbours, and two rows of two, where a node is next to itself.
    assert_close(measures.u_matrix(codewords, Torus((4,))), [4.0, 1.5, 3.0, 5.5])
    assert_close(measures.u_matrix(codewords, Torus((2, 2)), "4"), [[2.0, 3.5], [3.5, 5.0]])
    rows = jnp.arange(12.0)[:, None]
    # On 3 x 4 nodes, node 0 is next to 1, 3, 4, 8, and diagonally to 5, 7, 9, 11; only a torus connects it to 8, 9, 11.
    assert_close(measures.u_matrix(rows, Torus((3, 4)), "4")[0, 0], (1 + 3 + 4 + 8) / 4)
    assert_close(measures.u_matrix(rows, Torus((3, 4)))[0, 0], (1 + 3 + 4 + 8 + 5 + 7 + 9 + 11) / 8)
    assert_close(measures.u_matrix(rows, Cylinder((3, 4)))[0, 0], (1 + 3 + 4 + 5 + 7) / 5)
    # On 4 x 3 hexagons, node 0 is next to 1, 2 in its row, to 3, 5 below and to 9, 11 above.
    assert_close(measures.u_matrix(rows, HexagonalTorus((4, 3)))[0, 0], (1 + 2 + 3 + 5 + 9 + 11) / 6)


def test_map_measures_reject_wrong_grids():
    codewords = jnp.zeros((6, 2))
    with pytest.raises(InputError, match=r"grid has the shape \(2, 2\) and 4 nodes; it must have .* 6 codewords"):
        measures.topographic_error(codewords, codewords, Plane((2, 2)))
    with pytest.raises(InputError, match="adjacency is '6'; for this grid it must be one of '8', '4'"):
        measures.u_matrix(codewords, Plane((2, 3)), "6")
    with pytest.raises(InputError, match="n_neighbors is 3; it must be at least 1 and below K / 2, 3"):
        measures.trustworthiness(codewords, Plane((2, 3)), 3)


def test_map_measures_can_be_compiled(som):
    _, data, codewords = som
    trustworthiness = jax.jit(measures.trustworthiness, static_argnums=(1, 2))(codewords, Plane((5, 7)), 4)
    assert_close(trustworthiness, measures.trustworthiness(codewords, Plane((5, 7)), 4))
    u_matrix = jax.jit(measures.u_matrix, static_argnums=(1, 2))(codewords, Plane((5, 7)), "4")
    assert_close(u_matrix, measures.u_matrix(codewords, Plane((5, 7)), "4"))
    errors = jax.jit(measures.topographic_errors, static_argnums=(2, 3))(data, codewords, Plane((5, 7)), "4")
    assert errors == measures.topographic_errors(data, codewords, Plane((5, 7)), "4")


# URL-SOM.


def test_url_som_losses_in_closed_form():
    n = 9
    uniform, one_hot = jnp.full((5, n), 1 / n), jax.nn.one_hot(jnp.full(5, 3), n)
    spread = jax.nn.one_hot(jnp.arange(2 * n) % n, n)
    assert_close(urlsom_measures.winner_take_all_loss(uniform), 1.0)
    assert_close(urlsom_measures.collapse_loss(uniform), 0.0)
    assert_close(urlsom_measures.winner_take_all_loss(one_hot), 1 / 3)
    assert_close(urlsom_measures.collapse_loss(one_hot), 2 / 3)
    assert_close(urlsom_measures.winner_take_all_loss(spread), 1 / 3)
    assert_close(urlsom_measures.collapse_loss(spread), 0.0)
    assert_close(urlsom_measures.similarity_loss(spread, spread), 0.0)
    assert_close(urlsom_measures.similarity_loss(spread, jnp.roll(spread, 1, axis=1)), 1.0)


def test_url_som_losses_have_the_papers_minimum():
    """Figure 3, n = 2: the sum is lowest where the softmax saturates and each neuron wins half of the samples."""

    def surface(x, share):
        p = np.array([1.0, np.exp(-x)]) / (1 + np.exp(-x))
        batch = jnp.asarray(np.where(np.arange(100)[:, None] < 100 * share, p, p[::-1]), jnp.float32)
        return float(urlsom_measures.winner_take_all_loss(batch) + urlsom_measures.collapse_loss(batch))

    values = {(x, share): surface(x, share) for x in (0, 1, 2, 4, 6) for share in (0, 0.25, 0.5, 0.75, 1)}
    assert min(values, key=values.get) == (6, 0.5)
    assert_close(values[0, 0.25], 1.0)  # equal outputs
    # One neuron wins all samples: P . U is in both losses and cancels.
    assert_close([values[x, 1] for x in (1, 2, 4, 6)], 1.0)


def test_url_som_loss_equals_the_authors_script():
    p, z = RNG.dirichlet(np.full(16, 0.3), (2, 12))
    p_unit, z_unit = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (p, z))
    mean = np.mean((p_unit + z_unit) / 2, axis=0)
    u = np.full(16, 1 / 4)
    terms = urlsom_measures.loss_terms(jnp.asarray(p), jnp.asarray(z))
    for gamma in (1.0, 2.0):
        expected = (
            1 - mean @ u / np.linalg.norm(mean) + mean @ u + gamma * (1 - np.mean(np.sum(p_unit * z_unit, axis=1)))
        )
        assert_close(urlsom_measures.url_som_loss(terms, gamma), expected)
    assert_close(urlsom_measures.url_som_loss(terms), expected)


def test_url_som_loss_has_finite_gradients_at_one_hot_outputs():
    one_hot = jax.nn.one_hot(jnp.zeros(4, int), 900)
    gradient = jax.grad(lambda p, z: urlsom_measures.url_som_loss(urlsom_measures.loss_terms(p, z)))
    assert np.all(np.isfinite(jax.jit(gradient)(one_hot, one_hot)))


def test_neural_selectivity_and_dead_neurons_by_hand():
    table = jnp.array([[3, 1, 0], [0, 2, 2], [0, 0, 0], [0, 0, 4]])
    assert_close(urlsom_measures.neural_selectivity(table), 9 / 12)
    assert urlsom_measures.dead_neurons(table.sum(axis=-1)) == 1
    # Labels of the neurons: 0, 1 (the lower of a tie), none, 2. Held-out samples of the dead neuron are errors.
    held_out = jnp.array([[1, 1, 0], [0, 1, 3], [5, 0, 0], [0, 0, 1]])
    assert_close(urlsom_measures.neural_selectivity(table, held_out), 3 / 12)
    assert np.isnan(urlsom_measures.neural_selectivity(table, jnp.zeros_like(table)))


@pytest.mark.parametrize(("size", "n_vectors"), [(512, 100), (512, 512), (512, 5_000)])
def test_attainable_codes_are_the_mean_use_of_equally_likely_codes(size, n_vectors):
    rng = np.random.default_rng(0)
    used = [len(np.unique(rng.integers(0, size, n_vectors))) for _ in range(200)]
    np.testing.assert_allclose(measures.attainable_codes(size, n_vectors), np.mean(used), rtol=0.01)
