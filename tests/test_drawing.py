"""Every figure as a file: whole or not written at all, the same each time, and one line about a wrong array."""

import os
import subprocess
import sys

import matplotlib
import numpy as np
import pytest

from drawings import POINT, RANDOM, curves, photos, pixels, rows
from kvae.core.errors import InputError
from kvae.plots import canvas, maps
from kvae.plots import paper as paper_figures
from kvae.plots import run as figures
from kvae.plots import urlsom as urlsom_figures

STEPS = np.arange(0, 5000, 1000)
SERIES = {"a": (STEPS, RANDOM.uniform(1, 9, (3, 5))), "b": (STEPS, RANDOM.uniform(1, 9, 5))}
DRAWS = {
    "reconstructions": lambda p: figures.reconstructions(p, photos(9, 8, 8), photos(9, 8, 8), "t"),
    "reconstructions, PSNR": lambda p: figures.reconstructions(p, photos(9, 8, 8), photos(9, 8, 8), "t", np.arange(9)),
    "codebook_map": lambda p: maps.codebook_map(p, photos(4, 6, 8, 8), "t"),
    "codebook_map, unused codes": lambda p: maps.codebook_map(p, photos(4, 6, 8, 8), "t", np.eye(4, 6)),
    "codebook_map, patches": lambda p: maps.codebook_map(p, photos(4, 6, 8, 8), "t", patches=photos(4, 6, 6, 6)),
    "codebook_map, patches beside": lambda p: maps.codebook_map(p, photos(4, 4, 8, 8), "t", patches=photos(4, 4, 6, 6)),
    "codebook_map, a line": lambda p: maps.codebook_map(p, photos(50, 8, 8), "t"),
    "codebook_map, four axes": lambda p: maps.codebook_map(p, photos(2, 3, 4, 4, 8, 8), "t"),
    "hit_map": lambda p: maps.hit_map(p, np.arange(24).reshape(4, 6), "t"),
    "codebook_map, hexagons": lambda p: maps.codebook_map(p, photos(4, 6, 8, 8), "t", np.eye(4, 6), "hexagon"),
    "u_matrix, hexagons": lambda p: maps.u_matrix(p, RANDOM.uniform(size=(4, 6)), "t", np.eye(4, 6), "hexagon"),
    "hit_map, three axes": lambda p: maps.hit_map(p, np.arange(24).reshape(2, 3, 4), "t"),
    "hit_map, one code": lambda p: maps.hit_map(p, [7], "t"),
    "hit_map, nothing used": lambda p: maps.hit_map(p, np.zeros((4, 6)), "t"),
    "u_matrix": lambda p: maps.u_matrix(p, RANDOM.uniform(size=(4, 6)), "t"),
    "u_matrix, unused codes": lambda p: maps.u_matrix(p, RANDOM.uniform(size=(4, 6)), "t", np.eye(4, 6)),
    "u_matrix, all equal": lambda p: maps.u_matrix(p, np.full((4, 6), np.nan), "t"),
    "curves": lambda p: curves(p, rows(float)),
    "perturbation_curve": lambda p: figures.perturbation_curve(p, [-1, 0, 1], {"a": [9, 20, 9]}, "t"),
    "winners": lambda p: urlsom_figures.winners(p, [0, 5, 5], [0, 1, 0], ["cat", "dog"], (2, 3), "t"),
    "winners, no labels": lambda p: urlsom_figures.winners(p, np.array([], int), None, None, (2, 3), "t"),
    "initialisation": lambda p: paper_figures.initialisation(p, SERIES, "t"),
    "offset_reconstructions": lambda p: paper_figures.offset_reconstructions(p, {"a": photos(2, 8, 9)}, [0, 1], "t"),
    "neighborhoods": lambda p: paper_figures.neighborhoods(p, {"a": np.eye(4, 6), "b": np.eye(3)}, "t"),
    "perplexity": lambda p: paper_figures.perplexity(p, SERIES, 512, "t"),
    "frontier": lambda p: paper_figures.frontier(p, [POINT | {"paper": True, "loss_std": 0.01}], "t"),
    "collapse_surface": lambda p: urlsom_figures.collapse_surface(
        p, [0, 1, 2], [0, 1], RANDOM.uniform(size=(3, 2)), "t"
    ),
    "selectivity": lambda p: urlsom_figures.neural_selectivity_by_sigma(p, [3, 5], {"a": [[0.7, 0.6]] * 2}, "t"),
}
REFUSED = {
    "floats": lambda p: figures.reconstructions(p, np.zeros((2, 8, 8, 3)), photos(2, 8, 8), "t"),
    "unlike": lambda p: figures.reconstructions(p, photos(2, 8, 8), photos(3, 8, 8), "t"),
    "too many": lambda p: figures.reconstructions(p, photos(33, 8, 8), photos(33, 8, 8), "t"),
    "no images": lambda p: figures.reconstructions(p, photos(0, 8, 8), photos(0, 8, 8), "t"),
    "PSNR of others": lambda p: figures.reconstructions(p, photos(2, 8, 8), photos(2, 8, 8), "t", [30.0]),
    "patches of another grid": lambda p: maps.codebook_map(p, photos(2, 3, 8, 8), "t", patches=photos(3, 2, 8, 8)),
    "no grid": lambda p: maps.codebook_map(p, photos(8, 8), "t"),
    "four channels": lambda p: maps.codebook_map(p, np.zeros((2, 3, 8, 8, 4), np.uint8), "t"),
    "counts of another grid": lambda p: maps.codebook_map(p, photos(2, 3, 8, 8), "t", np.ones((3, 2))),
    "negative counts": lambda p: maps.hit_map(p, [[-1, 2]], "t"),
    "counts that are NaN": lambda p: maps.hit_map(p, [[np.nan, 2]], "t"),
    "empty grid": lambda p: maps.u_matrix(p, np.zeros((0, 3)), "t"),
    "nothing to plot": lambda p: curves(p, [{"step": 1, "images_per_second": 2.0}]),
    "no rows": lambda p: curves(p, []),
    "offsets": lambda p: figures.perturbation_curve(p, [0, 1], {"a": [1, 2, 3]}, "t"),
    "no labels": lambda p: figures.perturbation_curve(p, [0, 1], {}, "t"),
    "winner off the map": lambda p: urlsom_figures.winners(p, [6], None, None, (2, 3), "t"),
    "label without a name": lambda p: urlsom_figures.winners(p, [0], [1], ["cat"], (2, 3), "t"),
    "labels of others": lambda p: urlsom_figures.winners(p, [0], [0, 0], ["cat"], (2, 3), "t"),
    "steps": lambda p: paper_figures.initialisation(p, {"a": (STEPS, [1, 2])}, "t"),
    "an image too few": lambda p: paper_figures.offset_reconstructions(p, {"a": photos(2, 8, 8)}, [0, 1, 2], "t"),
    "a line": lambda p: paper_figures.neighborhoods(p, {"a": [1, 0]}, "t"),
    "three axes": lambda p: paper_figures.perplexity(p, {"a": (STEPS, np.ones((2, 2, 5)))}, 512, "t"),
    "no error": lambda p: paper_figures.frontier(p, [{"label": "a", "loss": 1}], "t"),
    "no points": lambda p: paper_figures.frontier(p, [], "t"),
    "transposed": lambda p: urlsom_figures.collapse_surface(p, [0, 1, 2], [0, 1], np.ones((2, 3)), "t"),
    "sigmas": lambda p: urlsom_figures.neural_selectivity_by_sigma(p, [3], {"a": [1, 2]}, "t"),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_every_figure_is_a_png_of_sensible_size_and_leaves_no_trace(draw, tmp_path):
    before = dict(matplotlib.rcParams)
    draw(tmp_path / "new folder" / "figure.png")
    height, width, _ = pixels(tmp_path / "new folder" / "figure.png").shape
    assert 250 < height < 2600
    assert 850 < width < 2600
    assert os.listdir(tmp_path / "new folder") == ["figure.png"]
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("draw", REFUSED.values(), ids=REFUSED)
def test_a_wrong_array_is_refused_in_one_line_and_the_old_file_stays(draw, tmp_path):
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    with pytest.raises(InputError) as caught:
        draw(path)
    assert "\n" not in str(caught.value)
    assert ": " in str(caught.value)
    assert path.read_bytes() == b"old"


def test_the_same_arrays_give_the_same_file(tmp_path):
    for name in ("a", "b"):
        urlsom_figures.winners(tmp_path / name, [0, 5, 5], [0, 1, 0], ["cat", "dog"], (2, 3), "t")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_draw_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), canvas.drawing(path, 5, 3, "t"):
        _ = 1 / 0

    def half_written(figure, file, **_):
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", half_written)
    with pytest.raises(OSError, match="no space"), canvas.drawing(path, 5, 3, "t"):
        pass
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["figure.png"]


def test_matplotlib_is_imported_only_to_draw_and_pyplot_never(tmp_path):
    program = (
        "import sys; from kvae.plots import maps as figures, paper as p; assert 'matplotlib' not in sys.modules\n"
        "figures.u_matrix(sys.argv[1], [[1.0, 2.0]], 't'); p.frontier(sys.argv[1], [dict(label='a', loss=1,"
        " topographic_error=0.1)], 't'); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "figure.png"], check=True)
