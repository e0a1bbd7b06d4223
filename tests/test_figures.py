"""Figures show maps, counts, curves, bands and legends."""

import itertools
import re

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

import kvae
from drawings import POINT, curves, photos, pixels, rows
from kvae.models import VQVAE2
from kvae.plots import canvas, index, paper, tiles, urlsom
from kvae.plots.codebooks import draw_codebook_map, draw_hit_map, draw_u_matrix, usage_note
from kvae.plots.curves import draw_perturbation_curve
from kvae.plots.reconstructions import draw_offset_reconstructions, draw_reconstructions
from kvae.training.pictures import panels


@pytest.fixture
def drawn(monkeypatch):
    """Captures figures instead of writing them."""
    caught = []
    monkeypatch.setattr(canvas, "_write", lambda figure, path, texts: caught.append(figure))
    return caught


def test_codebook_map_shows_images_pixel_by_pixel(tmp_path):
    images = photos(4, 6, 100, 90)
    draw_codebook_map(tmp_path / "map.png", images, "a title so long that it wraps to a second line, or even a third")
    page = pixels(tmp_path / "map.png")
    expected = tiles.join_tiles(images.reshape(24, 100, 90, 3), np.arange(24).reshape(4, 6))
    h, w, _ = expected.shape
    bottom, left = len(page) - round(0.42 * canvas.DPI), round(0.62 * canvas.DPI)
    np.testing.assert_array_equal(page[bottom - h : bottom, left : left + w], expected)


def test_pairs_have_psnr_below_and_panels_share_positions(drawn):
    draw_reconstructions("", photos(9, 8, 8), photos(9, 8, 8), "t", 20 + np.arange(9) / 2)
    below = [[label.get_text() for label in axes.get_xticklabels()] for axes in drawn[0].axes]
    assert below == [[f"{20 + i / 2:.1f} dB" for i in range(8)], ["24.0 dB"]]
    draw_codebook_map("", photos(2, 6, 8, 8), "t", patches=np.full((2, 6, 5, 5, 3), 7, np.uint8))
    decoded, patches = (axes.images[0].get_array() for axes in drawn[1].axes)
    assert decoded.shape == patches.shape
    assert [axes.get_title("left") for axes in drawn[1].axes] == ["decoded alone", "in real images (grey: never)"]
    assert set(np.unique(patches)) == {7, 255}  # patches, and the gaps between


def test_index_shows_existing_files_with_their_captions(tmp_path):
    draw_hit_map(tmp_path / "hits.png", [[3, 1], [0, 1]], "How <often>")
    Image.new("RGB", (10, 10)).save(tmp_path / "of_another.png")
    index.write_index(tmp_path, ["hits", "missing", "of_another"], "a & b, step 4")
    text = (tmp_path / "index.html").read_text()
    assert "<h1>a &amp; b, step 4</h1>" in text
    assert re.findall(r'<img src="(.*?)" alt="(.*?)"', text) == [
        ("hits.png", "How &lt;often&gt;"), ("of_another.png", "of another")
    ]  # fmt: skip
    captions = re.findall("<figcaption>(.*)</figcaption>", text)
    assert captions[0].startswith(
        "3 of 4 codes in use (N = 5; about 3 if equally likely), perplexity 2.6. Orange: never used. Dark: used often."
    )
    assert captions[1] == ""
    assert "http" not in text


def test_codebook_map_marks_unused_codes(drawn):
    images = np.zeros((2, 2, 9, 9, 3), np.uint8)
    draw_codebook_map("", images, "t", [[3, 0], [1, 1]])
    picture = drawn[0].axes[0].images[0].get_array()
    side = picture.shape[0] // 2
    note = " ".join(" ".join(text.get_text() for text in drawn[0].texts).split())
    assert "3 of 4 codes in use (N = 5; about 3 if equally likely). Pale, with an orange corner: never used." in note
    assert picture[:side, side:][0, 0].tolist() == [213, 94, 0]
    assert picture[:side, side:][side // 2, side // 2].tolist() == [128, 128, 128]
    assert picture[:side, :side][0, 0].tolist() == picture[side:, side:][0, 0].tolist() == [0, 0, 0]


def test_u_matrix_marks_unused_codes(drawn):
    draw_u_matrix("", [[0.1, 0.2], [0.3, 0.4]], "t", [[3, 1], [1, 0]])
    picture = drawn[0].axes[0].images[0].get_array()
    side = picture.shape[0] // 2
    assert any("never used" in text.get_text() for text in drawn[0].texts)
    assert picture[side, side].tolist() == [213, 94, 0]
    assert picture[0, 0].tolist() == picture[side // 2, side // 2].tolist() != [213, 94, 0]


def test_images_scale_up_by_whole_factors_and_down_by_averages():
    tiny = photos(1, 2, 3)
    np.testing.assert_array_equal(tiles.scale_images(tiny, 8), tiny.repeat(2, 1).repeat(2, 2))
    checks = np.zeros((1, 8, 8, 3), np.uint8)
    checks[:, ::2, ::2] = checks[:, 1::2, 1::2] = 200
    np.testing.assert_array_equal(tiles.scale_images(checks, 4), np.full((1, 4, 4, 3), 100))


def test_grids_of_any_dimension_are_laid_out_in_reading_order():
    part = tiles.lay_out_grid((2, 3), (64, 98))
    assert (part.row_labels, part.column_labels) == (["64", "65"], ["98", "99", "100"])
    flat = tiles.lay_out_grid((2, 3))
    np.testing.assert_array_equal(flat.codes, [[0, 1, 2], [3, 4, 5]])
    line = tiles.lay_out_grid((18,))
    np.testing.assert_array_equal(line.codes[-1], [16, 17, -1, -1, -1, -1, -1, -1])
    assert line.row_labels == ["0", "8", "16"]
    assert "each row continues" in line.note
    slices = tiles.lay_out_grid((3, 2, 2))
    np.testing.assert_array_equal(
        slices.codes, [[0, 1, -1, 4, 5], [2, 3, -1, 6, 7], [-1] * 5, [8, 9, -1, -1, -1], [10, 11, -1, -1, -1]]
    )
    assert slices.row_labels == ["0", "1", "", "0", "1"]


@pytest.mark.parametrize("shape", [(4, 256), (256, 256), (1000, 1000), (16, 16, 16), (65_536,), (2, 3, 500), (9, 1, 1)])
def test_labels_of_rows_and_columns_do_not_overlap(drawn, shape):
    draw_hit_map("", np.ones(shape), "t")
    draw_codebook_map("", np.zeros((*shape, 1, 1, 3), np.uint8), "t", patches=np.zeros((*shape, 1, 1, 3), np.uint8))
    for figure in drawn:
        FigureCanvasAgg(figure).draw()
        for axis in (axis for axes in figure.axes if axes.images for axis in (axes.xaxis, axes.yaxis)):
            boxes = [label.get_window_extent() for label in axis.get_ticklabels()]
            assert not any(one.overlaps(two) for one, two in itertools.pairwise(boxes))
            assert boxes or len(shape) == 1


def test_tiny_tiles_of_a_large_codebook_keep_their_colours(drawn):
    draw_codebook_map("", np.full((256, 256, 2, 2, 3), 40, np.uint8), "t", np.eye(256))
    picture = np.asarray(drawn[0].axes[0].images[0].get_array())
    assert set(np.unique(picture)) == {40, 128 + 40 // 2}
    assert "Pale: never used." in " ".join(" ".join(text.get_text() for text in drawn[0].texts).split())


def test_counts_of_codes_name_the_number_of_vectors(drawn):
    few, many = np.eye(1, 300, 7), np.ones((2, 3))
    assert usage_note(few, "neurons") == "1 of 300 neurons in use (N = 1; about 1 if equally likely)"
    for draw in (draw_hit_map, lambda path, counts, title: draw_codebook_map(path, photos(2, 3, 4, 4), title, counts)):
        draw("", many, "t")
        note = " ".join(" ".join(text.get_text() for text in drawn[-1].texts).split())
        assert "6 of 6 codes in use (N = 6; about 4 if equally likely)" in note


def test_panels_of_counts_name_the_number_of_vectors():
    layer = kvae.KohonenVQ((2, 2))
    model, last = (
        VQVAE2(quantizer_top=layer, quantizer_bottom=layer),
        {"valid/codes_used_top": 3, "valid/vectors_top": [6_400, 6_400], "valid/psnr": 20.0},
    )
    titles = [title for title, *_ in panels(model, [{"step": 1} | last | {"valid/vectors_bottom": 25_600}])]
    assert titles == ["Reconstruction quality", "Codes in use (N = 6,400)"]


def test_code_used_once_differs_from_unused_code(tmp_path):
    counts = np.array([[1, 50, 0], [200, 3, 1000]])
    draw_hit_map(tmp_path / "never.png", counts, "t")
    counts[0, 2] = 1
    draw_hit_map(tmp_path / "once.png", counts, "t")
    never, once = pixels(tmp_path / "never.png"), pixels(tmp_path / "once.png")
    below, left, cell = round(0.42 * canvas.DPI), round(0.62 * canvas.DPI), 122
    never, once = (page[-2 * cell - below : -below, left : left + 3 * cell] for page in (never, once))
    assert len(np.unique(once[:120, 244:364].reshape(-1, 3), axis=0)) == 1
    # Striped, and red on average; the colours of the scale are green or blue.
    stripes = never[:120, 244:364].reshape(-1, 3)
    assert len(np.unique(stripes, axis=0)) == 2
    assert stripes[:, 0].mean() > stripes[:, 2].mean() + 40
    np.testing.assert_array_equal(never[:, : 2 * cell], once[:, : 2 * cell])
    np.testing.assert_array_equal(never[cell:], once[cell:])


def test_hit_map_notes_codes_in_use_and_perplexity(drawn):
    draw_hit_map("", [[5, 5, 0], [5, 5, 0]], "t")
    assert any("4 of 6 codes in use (N = 20), perplexity 4.0" in text.get_text() for text in drawn[0].texts)


def test_hit_map_scale_ends_at_largest_count(drawn):
    draw_hit_map("", [[2, 19, 187]], "t", unit="neurons")
    assert drawn[0].axes[1].get_yticks()[-1] == 187
    assert any("3 of 3 neurons in use" in text.get_text() for text in drawn[0].texts)


def test_ticks_stay_within_data_range_below_legend(drawn):
    values = [{"step": step, "valid/neural_selectivity": 0.2 * step} for step in range(1, 6)]
    curves("", values)
    axes = drawn[0].axes[0]
    assert axes.get_yticks().max() <= 1.05 < axes.get_ylim()[1]


def curve(figure, panel, label):
    axes = next(axes for axes in figure.axes if axes.get_title(loc="left") == panel)
    return next(line.get_ydata() for line in axes.lines if line.get_label() == label), axes


def test_missing_value_is_gap_and_isolated_value_is_dot(drawn):
    curves("", rows(lambda step: None if step in (3, 6) else float(step)))
    _, axes = curve(drawn[0], "Losses", "reconstruction")
    pale = next(line for line in axes.lines if len(line.get_ydata()) == 8)
    np.testing.assert_array_equal(pale.get_ydata(), [1, 2, np.nan, 4, 5, np.nan, 7, 8])
    # Validation runs at steps 2, 4, 6 and 8, so its last value follows a gap.
    values, axes = curve(drawn[0], "Reconstruction quality", "validation")
    np.testing.assert_array_equal(values, [2, 4, np.nan, 8])
    dots = [line.get_ydata().tolist() for line in axes.lines if line.get_marker() == "o"]
    assert dots == [[8]]


def test_axis_of_counts_has_integer_ticks(drawn):
    curves("", rows(lambda step: 511 + step // 6))
    _, axes = curve(drawn[0], "Perplexity", "validation")
    assert {511, 512} <= {*axes.get_yticks()} and all(tick == int(tick) for tick in axes.get_yticks())


def test_replicas_are_thin_lines_and_a_mean(drawn):
    curves("", rows(lambda step: [step, 3 * step, None if step == 8 else 5 * step]))
    values, axes = curve(drawn[0], "Reconstruction quality", "validation")
    np.testing.assert_array_equal(values, [6, 12, 18, np.nan])
    thin = [line.get_ydata().tolist() for line in axes.lines if line.get_linewidth() < 1 and line.get_marker() != "o"]
    assert thin[:2] == [[2, 4, 6, 8], [6, 12, 18, 24]]
    assert any("has a gap" in text.get_text() for text in drawn[0].texts)
    curves("", rows(lambda step: [step, 3 * step]))
    assert not any("has a gap" in text.get_text() for text in drawn[1].texts)


def test_curves_need_one_row_and_separate_codebooks(drawn):
    curves("", [{"step": 10, "valid/perplexity_top": 3.0, "valid/perplexity_bottom": None}])
    assert len(drawn[0].axes) == 1
    assert curve(drawn[0], "Perplexity", "top")[0].tolist() == [3.0]
    curves("", [{"step": 10, "train/loss": 3.0, "valid/a_set/psnr": 9.0}])
    assert [axes.get_title(loc="left") for axes in drawn[1].axes] == ["Loss"]


def test_band_is_one_sample_standard_deviation(drawn):
    draw_perturbation_curve("", [0, 1], {"a": [[20, 10], [22, 14]]}, "t")
    axes = drawn[0].axes[0]
    assert axes.get_legend_handles_labels()[1] == ["a"]
    assert axes.lines[-1].get_ydata().tolist() == [21, 12]
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose([heights.min(), heights.max()], [12 - 8**0.5, 21 + 2**0.5])


def test_more_series_than_colours_are_all_drawn(drawn):
    draw_perturbation_curve("", [0, 1], {str(i): [i, i] for i in range(13)}, "t")
    assert len(drawn[0].axes[0].get_legend_handles_labels()[1]) == 13


def test_samples_are_near_winner_and_labels_where_dense(drawn):
    urlsom.draw_winners("", [4] * 50 + [0], [1] * 50 + [0], ["cat", "dog"], (2, 3), "t")
    axes = drawn[0].axes[0]
    places = axes.collections[0].get_offsets()
    near = np.abs(places - [1, 1]).max(axis=1) <= 0.4
    assert near.sum() == 50
    assert np.all(np.abs(places[~near]) <= 0.4)
    assert {text.get_text(): text.get_position() for text in axes.texts} == {"cat": (0, 0), "dog": (1, 1)}


def test_weights_are_rounded_and_winner_is_ringed(drawn):
    weights = np.zeros((4, 6))
    weights[1:4, 1:4] = np.exp(-1)
    weights[2, 2] = 1
    paper.draw_neighborhoods("", {"t = 0": weights, "all equal": weights > 0}, "t")
    first, second, _ = drawn[0].axes
    assert sorted({text.get_text() for text in first.texts}) == ["0.37", "1"]
    assert first.patches[0].center == second.patches[0].center == (2.5, 2.5)


def test_pairs_of_curves_share_a_colour(drawn):
    values = {label: ([100, 200], [[0.5, 0.4], [0.7, 0.6]]) for label in ("EMA, N = 0", "map, N = 0", "EMA", "map")}
    paper.draw_pairs("", {"loss": values, "codes": values}, "t")
    for axes in drawn[0].axes:
        lines = axes.get_lines()
        assert [line.get_label() for line in lines] == list(values)
        assert [line.get_linestyle() for line in lines] == ["--", "-"] * 2
        assert lines[0].get_color() == lines[1].get_color() != lines[2].get_color() == lines[3].get_color()
        np.testing.assert_allclose(lines[0].get_ydata(), [0.6, 0.5])


def test_frontier_marks_paper_setting_and_shades_goal(drawn):
    points = [POINT, POINT | {"label": "0.01", "topographic_error": 0.1, "paper": True}]
    paper.draw_frontier("", points, "t")
    axes = drawn[0].axes[0]
    assert axes.get_legend_handles_labels()[1] == ["shrink step 0.1", "0.01"]
    assert axes.patches[0].get_extents().width == pytest.approx(axes.transData.transform((0.2, 0))[0] - axes.bbox.x0)


def test_row_labels_are_not_cut_off(drawn):
    draw_offset_reconstructions("", {"EMA-VQ, bottom level moved": photos(2, 8, 8)}, [0, 1], "t")
    canvas = FigureCanvasAgg(drawn[0])
    canvas.draw()
    label = drawn[0].axes[0].get_yticklabels()[0]
    assert label.get_text() == "EMA-VQ\nbottom level moved"
    assert label.get_window_extent(canvas.get_renderer()).x0 > 0


def test_label_is_at_densest_region_not_between_clusters():
    row, column = np.array([0] * 9 + [9] * 8 + [4]), np.array([0, 1, 2] * 3 + [9] * 8 + [5])
    assert urlsom._densest_cell(row, column).tolist() == [0, 1]
