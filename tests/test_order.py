"""What order is good for: codes with bit errors, codebooks cut down, and what a code costs, by hand and on a run."""

import itertools
import math

import numpy as np
import pytest

from kvae.paper import figures, order
from kvae.paper.settings import Table
from kvae.runs.seeds import read_seeds
from runs import run

pytestmark = pytest.mark.usefixtures("undrawn")


class Flips:
    """A generator by which exactly the chosen bits are flipped."""

    def __init__(self, *bits):
        self.bits = bits

    def random(self, shape):
        drawn = np.ones(shape)
        drawn[..., list(self.bits)] = 0
        return drawn


def test_positions_are_sent_in_gray_code():
    # 3 is sent as 010: received as 011 it is 2, as 000 it is 0, as 110 it is 4.
    received = [int(order.with_bit_errors(np.array(3), (8,), 0.5, Flips(bit))) for bit in range(3)]
    assert received == [2, 0, 4]
    for here, there in itertools.pairwise(range(8)):
        assert there in {int(order.with_bit_errors(np.array(here), (8,), 0.5, Flips(bit))) for bit in range(3)}


def test_each_axis_is_sent_by_itself_and_ends_at_its_border():
    codes = np.arange(30).reshape(5, 6)
    np.testing.assert_array_equal(order.with_bit_errors(codes, (5, 6), 0.0, np.random.default_rng(0)), codes)
    noisy = order.with_bit_errors(codes, (5, 6), 0.3, np.random.default_rng(0))
    assert noisy.min() >= 0
    assert noisy.max() < 30
    # Bit 2 of row 1, sent as 001, makes it 101, which is 6: beyond the last row, 4.
    assert order.with_bit_errors(np.array([1 * 6 + 2]), (5, 6), 0.5, Flips(2))[0] // 6 == 4


def test_the_share_of_flipped_bits_is_the_rate():
    sent = np.zeros(200_000, int)
    received = order.with_bit_errors(sent, (2,), 0.01, np.random.default_rng(0))
    assert received.mean() == pytest.approx(0.01, abs=0.001)


def test_codebooks_are_cut_down_by_rows_and_columns_or_by_usage():
    assert [kept.tolist() for kept in order.sub_grids((4, 2))] == [list(range(8)), [0, 1, 4, 5], [0, 1]]
    assert [kept.tolist() for kept in order.most_used(np.array([1, 7, 3, 9]))] == [[3, 1, 2, 0], [3, 1]]


def test_bits_per_code_by_hand():
    far = np.array([[0.0, 1.0], [1.0, 0.0]])
    codes = np.array([[[0, 0], [1, 0]]])
    usage = np.array([3.0, 1.0])
    weight = math.exp(-1 / 0.5)

    def bits(code, *neighbors):
        weights = usage * np.prod([np.where(np.arange(2) == near, 1, weight) for near in neighbors], axis=0)
        return -math.log2(weights[code] / weights.sum())

    by_hand = [bits(0), bits(0, 0), bits(1, 0), bits(0, 1, 0)]
    assert order.bits_per_code(codes, far, usage, 0.5) == pytest.approx(np.mean(by_hand))
    alone = [bits(code) for code in (0, 0, 1, 0)]
    assert order.bits_per_code(codes, far, usage, math.inf) == pytest.approx(np.mean(alone))


def test_the_best_scale_is_that_of_the_training_images():
    grid = np.abs(np.arange(8)[:, None] - np.arange(8)[None]).astype(float)
    smooth = np.broadcast_to(np.arange(8)[None, :, None], (4, 8, 8))
    noise = np.random.default_rng(0).integers(0, 8, (4, 8, 8))
    usage = np.ones(8)
    assert order.best_bits_per_code(smooth, smooth, grid, usage) < 1.5
    assert order.best_bits_per_code(noise, noise, grid, usage) == pytest.approx(3.0, abs=0.05)


def test_the_figures_are_drawn_from_runs(make_config, tmp_path, monkeypatch):
    monkeypatch.setattr(order, "MEASURED_IMAGES", 8)
    run(make_config(), tmp_path / "run")
    seeds = read_seeds([str(tmp_path / "run")])
    table = Table("peers", "photos", {}, {"tuned_map": seeds, "tuned_ema_restarts": seeds}, [])
    for name in ("bit_errors", "fewer_bits", "compression"):
        (path,) = figures.FIGURES[name][1](table, str(tmp_path / name))
        with open(path, "rb") as file:
            assert file.read(4) == b"\x89PNG"
