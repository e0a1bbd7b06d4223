"""The papers' figures, by command, from tiny runs of a map and of EMA-VQ."""

import json
import pathlib
import shutil
import types

import pytest

from kvae.core import program
from kvae.models.model import Metric
from kvae.paper import figures as paper
from kvae.paper import tables

pytestmark = pytest.mark.usefixtures("in_the_project")


def draw(capsys, name, runs, out):
    """Draws a figure; returns the names of its files."""
    folders = [] if runs is None else [str(runs)]
    assert program.run(paper.main, [f"--figure={name}", *folders, f"--out={out}"]) == 0
    files = [pathlib.Path(line) for line in capsys.readouterr().out.splitlines()]
    assert all(file.stat().st_size > 1_000 for file in files)
    return [file.stem for file in files]


def with_quantizer(run, folder, **fields):
    """A copy of a run whose config has other fields of the quantiser."""
    shutil.copytree(run, folder)
    config = json.loads((folder / "config.json").read_text())
    config["model"]["quantizer"] |= fields
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def runs(trained_run, tmp_path):
    """`runs(model, *settings)`: a folder with a run of each setting of Table 3; all have equal variables."""
    starts = {"": {}, "_n0": {"init_count": 0.0}, "_keep": {"update_empty": False}}
    starts["_n0_keep"] = starts["_n0"] | starts["_keep"]
    methods = {"hard": {}, "ema": {"neighborhood": "none"}}
    fields = {method + start: methods[method] | starts[start] for method in methods for start in starts}

    def make(model, *settings):
        for setting in settings or fields:
            with_quantizer(trained_run(model), tmp_path / "runs" / setting, **fields[setting])
        return tmp_path / "runs"

    return make


def test_figures_of_a_model_with_one_codebook(runs, tmp_path, capsys):
    folder, out = runs("vqvae", "hard", "ema", "ema_n0"), tmp_path / "figures"
    assert draw(capsys, "1", folder, out) == ["figure_1_photos"]
    assert draw(capsys, "2", folder, out) == ["figure_2_photos_ema", "figure_2_photos_hard"]
    assert draw(capsys, "3", folder, out) == ["figure_3_photos"]
    assert draw(capsys, "6", folder, out) == ["figure_6_photos"]
    assert draw(capsys, "perturbation", folder, out) == ["figure_perturbation_photos"]
    assert draw(capsys, "frontier", folder, out) == ["figure_frontier_photos"]
    assert program.run(paper.main, ["--figure=robustness", str(folder), f"--out={out}"]) == 2
    assert "there is no finished run of the setting 'ema_n0_keep' on photos" in capsys.readouterr().err
    assert program.run(paper.main, ["--figure=8", str(folder), f"--out={out}"]) == 2
    assert "this figure needs models with two codebooks" in capsys.readouterr().err


def test_robustness_figure_shows_all_settings_of_table_3(runs, tmp_path, capsys):
    assert draw(capsys, "robustness", runs("vqvae"), tmp_path / "figures") == ["figure_robustness_photos"]


def test_figures_of_a_model_with_two_codebooks(runs, tmp_path, capsys):
    folder, out = runs("vqvae2", "hard", "ema"), tmp_path / "figures"
    assert set(draw(capsys, "7", folder, out)) == {
        f"figure_7_photos_{setting}_{level}_held_{quarter}"
        for setting in ("ema", "hard") for level in ("top", "bottom") for quarter in (1, 3)
    }  # fmt: skip
    assert draw(capsys, "6", folder, out) == ["figure_6_photos_top", "figure_6_photos_bottom"]
    for name in ("3", "8", "9"):
        assert draw(capsys, name, folder, out) == [f"figure_{name}_photos"]


def test_figures_of_neighborhoods_need_no_runs(tmp_path, capsys):
    for name in ("4", "5", "urlsom_3"):
        assert draw(capsys, name, None, tmp_path) == [f"figure_{name}"]


def test_selectivity_is_drawn_by_sigma(make_config, tmp_path, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr(paper.urlsom_figures.plots, "draw_selectivity_by_sigma", lambda *values: drawn.append(values))
    for sigma, of_train, held_out in ((1.0, [0.9, 0.8], [0.7, 0.6]), (0.5, [0.5, 0.4], [0.3, 0.2])):
        folder = tmp_path / str(sigma)
        folder.mkdir()
        config = make_config("urlsom", replicas=2, steps=4, **{"model.sigma": sigma})
        (folder / "config.json").write_text(json.dumps(config))
        row = {"step": 4, "valid/neural_selectivity_train": of_train, "valid/neural_selectivity_transferred": held_out}
        (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert program.run(paper.main, ["--figure=urlsom_7", str(tmp_path), f"--out={tmp_path}"]) == 0
    _, sigmas, values, title = drawn[0]
    assert sigmas == [0.5, 1.0]
    assert values == {"training set": [[0.5, 0.9], [0.4, 0.8]], "held out": [[0.3, 0.7], [0.2, 0.6]]}
    assert "digits" in title
    assert program.run(paper.main, ["--figure=urlsom_7", str(tmp_path / "0.5"), f"--out={tmp_path}"]) == 2
    assert "at least two values of model.sigma; found 0.5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("figure", "fields", "message"),
    [
        ("3", {"model.quantizer.neighborhood": "none"}, "there is no finished run of the setting 'hard' on photos"),
        ("1", {"model.quantizer.neighborhood": "none"}, "there is no finished run of the setting 'ema_n0' on photos"),
        (
            "3",
            {"model.quantizer.radius": 3.0},
            "figure 3 needs runs of at least one of these settings: ema, hard, exponential",
        ),
    ],
)
def test_figure_without_its_runs_names_what_it_needs(make_config, tmp_path, capsys, figure, fields, message):
    (tmp_path / "config.json").write_text(json.dumps(make_config(steps=2, **fields)))
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "valid/loss": 0.1, "valid/reconstruction_loss": 0.1}\n')
    assert program.run(paper.main, [f"--figure={figure}", str(tmp_path), f"--out={tmp_path}"]) == 2
    assert capsys.readouterr().err == f"kvae: {message}\n"


def test_tables_leave_out_metrics_that_models_no_longer_have():
    row = {"step": 8, "valid/reconstruction_loss": 0.5, "valid/topographic_error_8": 0.3}
    row |= {"valid/topographic_error_diagonals": 0.2}
    seed = types.SimpleNamespace(evaluations=[row])
    measured = tables.known_measures(seed, {"topographic_error_diagonals": Metric()})
    assert measured == {"loss": 0.5, "steps_10": 8, "steps_20": 8, "topographic_error_diagonals": 0.2}
