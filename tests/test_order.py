"""Uses of order: bit errors, part of a codebook, and bits per code, by hand and on a run."""

import itertools
import math

import numpy as np
import pytest

import kvae
from kvae.models.autoencoders import inspection
from kvae.models.bit_errors import binary_shape, with_bit_errors
from kvae.paper import figures, order
from kvae.paper.settings import Table
from kvae.runs.seeds import read_seeds


class Flips:
    """A random generator that flips exactly the chosen bits."""

    def __init__(self, *bits):
        self.bits = bits

    def random(self, shape):
        numbers = np.ones(shape)
        numbers[..., list(self.bits)] = 0
        return numbers


def test_positions_are_sent_in_gray_code():
    # 3 is sent as 010. Received as 011 it is 2, as 000 it is 0, as 110 it is 4.
    received = [int(with_bit_errors(np.array(3), (8,), 0.5, Flips(bit))) for bit in range(3)]
    assert received == [2, 0, 4]
    for position, neighbor in itertools.pairwise(range(8)):
        one_flip = {int(with_bit_errors(np.array(position), (8,), 0.5, Flips(bit))) for bit in range(3)}
        assert neighbor in one_flip


def test_axes_are_sent_separately_and_end_at_the_border():
    codes = np.arange(30).reshape(5, 6)
    np.testing.assert_array_equal(with_bit_errors(codes, (5, 6), 0.0, np.random.default_rng(0)), codes)
    noisy = with_bit_errors(codes, (5, 6), 0.3, np.random.default_rng(0))
    assert noisy.min() >= 0
    assert noisy.max() < 30
    # Row 1 is sent as 001. With bit 2 flipped it is 101, row 6, which is beyond the last row, 4.
    assert with_bit_errors(np.array([1 * 6 + 2]), (5, 6), 0.5, Flips(2))[0] // 6 == 4


def test_share_of_flipped_bits_is_the_rate():
    sent = np.zeros(200_000, int)
    received = with_bit_errors(sent, (2,), 0.01, np.random.default_rng(0))
    assert received.mean() == pytest.approx(0.01, abs=0.001)


def test_codebooks_shrink_by_rows_and_columns_or_by_usage():
    assert [kept.tolist() for kept in order.sub_grids((4, 2))] == [list(range(8)), [0, 1, 4, 5], [0, 1]]
    assert [kept.tolist() for kept in order.most_used(np.array([1, 7, 3, 9]))] == [[3, 1, 2, 0], [3, 1]]


def test_bits_per_code_by_hand():
    distances = np.array([[0.0, 1.0], [1.0, 0.0]])
    codes = np.array([[[0, 0], [1, 0]]])
    usage = np.array([3.0, 1.0])
    weight = math.exp(-1 / 0.5)

    def bits(code, *neighbors):
        weights = usage * np.prod([np.where(np.arange(2) == near, 1, weight) for near in neighbors], axis=0)
        return -math.log2(weights[code] / weights.sum())

    by_hand = [bits(0), bits(0, 0), bits(1, 0), bits(0, 1, 0)]
    assert order.bits_per_code(codes, distances, usage, 0.5) == pytest.approx(np.mean(by_hand))
    alone = [bits(code) for code in (0, 0, 1, 0)]
    assert order.bits_per_code(codes, distances, usage, math.inf) == pytest.approx(np.mean(alone))


def test_scale_is_fitted_to_the_training_images():
    grid = np.abs(np.arange(8)[:, None] - np.arange(8)[None]).astype(float)
    smooth = np.broadcast_to(np.arange(8)[None, :, None], (4, 8, 8))
    noise = np.random.default_rng(0).integers(0, 8, (4, 8, 8))
    usage = np.ones(8)
    assert order.best_bits_per_code(smooth, smooth, grid, usage) < 1.5
    assert order.best_bits_per_code(noise, noise, grid, usage) == pytest.approx(3.0, abs=0.05)


def test_figures_are_drawn_from_runs(trained_run, tmp_path, monkeypatch):
    monkeypatch.setattr(order, "MEASURED_IMAGES", 8)
    seeds = read_seeds([str(trained_run())])
    table = Table("peers", "photos", {}, {"tuned_map": seeds, "tuned_ema_restarts": seeds}, [], [])
    for name in ("bit_errors", "fewer_bits", "compression"):
        (path,) = figures.FIGURES[name][1](table, str(tmp_path / name))
        with open(path, "rb") as file:
            assert file.read(4) == b"\x89PNG"


def test_codes_without_a_map_are_sent_as_binary_numbers():
    assert binary_shape(8) == (2, 2, 2) and binary_shape(6) == (6,) and binary_shape(1) == (1,)
    flipped = with_bit_errors(np.array(5), (2, 2, 2), 0.5, Flips(0))
    assert int(flipped) == 2  # every axis has one bit, and all are flipped


@pytest.mark.parametrize("model", ["vqvae", "vqvae2"])
def test_bit_errors_change_the_codes_of_all_codebooks(trained_run, monkeypatch, model):
    run = kvae.load(str(trained_run(model)))
    images, random = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8), np.random.default_rng(0)
    for rate in (0.0, 0.5):
        monkeypatch.setattr(inspection, "BIT_ERROR_RATE", rate)
        measured = inspection.extra_metrics(run.model, run.variables, images)["bit_error_psnr"]
        received = run.encode(images)
        for name, layer in run.model.quantizers.items():
            received[name] = with_bit_errors(received[name], layer.grid.shape, rate, random if rate else Flips())
        expected = np.mean(kvae.measures.psnr(images, run.decode(received)))
        assert measured == pytest.approx(float(expected), abs=1e-3)
