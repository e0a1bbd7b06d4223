"""Every figure is a complete file or none, the same file each time, and one line about a wrong array."""

import ast
import os
import pathlib

import matplotlib
import numpy as np
import pytest

from drawings import POINT, RANDOM, curves, photos, pixels, rows
from kvae import plots
from kvae.core.errors import InputError
from kvae.plots.canvas import png_figure
from kvae.plots.codebooks import draw_codebook_map, draw_hit_map, draw_u_matrix
from kvae.plots.curves import draw_comparison, draw_perturbation_curve
from kvae.plots.paper import draw_frontier, draw_initialization, draw_neighborhoods, draw_perplexity
from kvae.plots.reconstructions import draw_offset_reconstructions, draw_reconstructions
from kvae.plots.transmission import draw_bit_errors, draw_compression, draw_pruning
from kvae.plots.urlsom import draw_collapse_surface, draw_selectivity_by_sigma, draw_winners

STEPS = np.arange(0, 5000, 1000)
SERIES = {"a": (STEPS, RANDOM.uniform(1, 9, (3, 5))), "b": (STEPS, RANDOM.uniform(1, 9, 5))}
PAIRS = photos(9, 8, 8), photos(9, 8, 8)
TILES, USED, HEIGHTS = photos(4, 6, 8, 8), np.eye(4, 6), RANDOM.uniform(size=(4, 6))
DRAWS = {
    "reconstructions": lambda p: draw_reconstructions(p, *PAIRS, "t"),
    "reconstructions, PSNR": lambda p: draw_reconstructions(p, *PAIRS, "t", np.arange(9)),
    "offset_reconstructions": lambda p: draw_offset_reconstructions(p, {"a": photos(2, 8, 9)}, [0, 1], "t"),
    "codebook_map, unused codes": lambda p: draw_codebook_map(p, TILES, "t", USED),
    "codebook_map, patches": lambda p: draw_codebook_map(p, TILES, "t", patches=photos(4, 6, 6, 6)),
    "codebook_map, square": lambda p: draw_codebook_map(p, photos(4, 4, 8, 8), "t", patches=photos(4, 4, 6, 6)),
    "codebook_map, a line": lambda p: draw_codebook_map(p, photos(50, 8, 8), "t"),
    "codebook_map, four axes": lambda p: draw_codebook_map(p, photos(2, 3, 4, 4, 8, 8), "t"),
    "codebook_map, hexagons": lambda p: draw_codebook_map(p, TILES, "t", USED, "hexagon"),
    "hit_map": lambda p: draw_hit_map(p, np.arange(24).reshape(4, 6), "t"),
    "hit_map, three axes": lambda p: draw_hit_map(p, np.arange(24).reshape(2, 3, 4), "t"),
    "hit_map, one code": lambda p: draw_hit_map(p, [7], "t"),
    "hit_map, nothing used": lambda p: draw_hit_map(p, np.zeros((4, 6)), "t"),
    "u_matrix, unused codes": lambda p: draw_u_matrix(p, HEIGHTS, "t", USED),
    "u_matrix, hexagons": lambda p: draw_u_matrix(p, HEIGHTS, "t", USED, "hexagon"),
    "u_matrix, all NaN": lambda p: draw_u_matrix(p, np.full((4, 6), np.nan), "t"),
    "curves": lambda p: curves(p, rows(float)),
    "comparison": lambda p: draw_comparison(p, {("Loss", "squared error"): SERIES}, "t"),
    "perturbation_curve": lambda p: draw_perturbation_curve(p, [-1, 0, 1], {"a": [9, 20, 9]}, "t"),
    "initialization": lambda p: draw_initialization(p, SERIES, "t"),
    "neighborhoods": lambda p: draw_neighborhoods(p, {"a": np.eye(4, 6), "b": np.eye(3)}, "t"),
    "perplexity": lambda p: draw_perplexity(p, SERIES, 512, "t"),
    "frontier": lambda p: draw_frontier(p, [POINT | {"paper": True, "loss_std": 0.01}], "t"),
    "bit_errors": lambda p: draw_bit_errors(p, [0.001, 0.01], {"a": [[1, 2], [2, 4]]}, "t"),
    "pruning": lambda p: draw_pruning(p, [8.0, 9.0], {"a": [[20, 22]]}, "t"),
    "compression": lambda p: draw_compression(p, {"a": {"plain": [9.0], "by use": [8.0]}}, "t"),
    "winners": lambda p: draw_winners(p, [0, 5, 5], [0, 1, 0], ["cat", "dog"], (2, 3), "t"),
    "winners, none": lambda p: draw_winners(p, np.array([], int), None, None, (2, 3), "t"),
    "collapse_surface": lambda p: draw_collapse_surface(p, [0, 1, 2], [0, 1], RANDOM.uniform(size=(3, 2)), "t"),
    "selectivity": lambda p: draw_selectivity_by_sigma(p, [3, 5], {"a": [[0.7, 0.6]] * 2}, "t"),
}
REFUSED = {
    "floats": lambda p: draw_reconstructions(p, np.zeros((2, 8, 8, 3)), photos(2, 8, 8), "t"),
    "other shapes": lambda p: draw_reconstructions(p, photos(2, 8, 8), photos(3, 8, 8), "t"),
    "no images": lambda p: draw_reconstructions(p, photos(0, 8, 8), photos(0, 8, 8), "t"),
    "no grid": lambda p: draw_codebook_map(p, photos(8, 8), "t"),
    "four channels": lambda p: draw_codebook_map(p, np.zeros((2, 3, 8, 8, 4), np.uint8), "t"),
    "no metric of a panel": lambda p: curves(p, [{"step": 1, "images_per_second": 2.0}]),
    "no rows": lambda p: curves(p, []),
    "no series": lambda p: draw_perturbation_curve(p, [0, 1], {}, "t"),
    "no points": lambda p: draw_frontier(p, [], "t"),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_figure_is_png_of_sensible_size_without_side_effects(draw, tmp_path):
    before = dict(matplotlib.rcParams)
    draw(tmp_path / "new folder" / "figure.png")
    height, width, _ = pixels(tmp_path / "new folder" / "figure.png").shape
    assert 250 < height < 2600
    assert 850 < width < 2600
    assert os.listdir(tmp_path / "new folder") == ["figure.png"]
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("draw", REFUSED.values(), ids=REFUSED)
def test_wrong_array_is_refused_and_old_file_stays(draw, tmp_path):
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    with pytest.raises(InputError, match="; ") as raised:
        draw(path)
    assert "\n" not in str(raised.value)
    assert path.read_bytes() == b"old"


def test_equal_arrays_give_equal_files(tmp_path):
    for name in ("a", "b"):
        draw_winners(tmp_path / name, [0, 5, 5], [0, 1, 0], ["cat", "dog"], (2, 3), "t")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_failed_drawing_leaves_only_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), png_figure(path, 5, 3, "t"):
        _ = 1 / 0

    def write_half(figure, file, **_):
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", write_half)
    with pytest.raises(OSError, match="no space"), png_figure(path, 5, 3, "t"):
        pass
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["figure.png"]


def test_matplotlib_is_imported_inside_functions_and_pyplot_never():
    """Models import figures, and are trained where matplotlib, Pillow and scikit-learn may be missing."""
    for path in pathlib.Path(plots.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text())
        on_import = {name.split(".")[0] for node in tree.body for name in imported(node)}
        assert not on_import & {"matplotlib", "PIL", "sklearn"}, path
        assert not any("pyplot" in name for node in ast.walk(tree) for name in imported(node)), path


def imported(node):
    """Yields the modules and names that an import statement mentions."""
    if isinstance(node, ast.ImportFrom):
        yield from (node.module, *(alias.name for alias in node.names))
    elif isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
