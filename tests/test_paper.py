"""The paper's figures by command, from tiny runs of a map and of EMA-VQ."""

import json
import pathlib
import shutil
import types

import jax
import pytest

from kvae.core import program
from kvae.paper import figures as paper
from kvae.paper import tables
from kvae.training.train import train

pytestmark = pytest.mark.usefixtures("undrawn", "in_the_project")


def drawn(capsys, name, runs, out):
    """The names of the files of a figure."""
    assert program.run(paper.main, [f"--figure={name}", *map(str, runs), f"--out={out}"]) == 0
    files = [pathlib.Path(line) for line in capsys.readouterr().out.splitlines()]
    assert all(file.stat().st_size > 1_000 for file in files)
    return [file.stem for file in files]


def make_runs(make_config, folder, model, replicas):
    for setting, neighborhood in (("hard", "hard"), ("ema", "none")):
        config = make_config(
            model, steps=4, evaluate_every_steps=4, replicas=replicas, **{"model.quantizer.neighborhood": neighborhood}
        )
        train(config, str(folder / setting), jax.devices()[:1])
    return folder


def pretend(run, into, **fields):
    """A copy of a run's files that says it had other fields of the model."""
    into.mkdir()
    config = json.loads((run / "config.json").read_text())
    config["model"]["quantizer"] |= fields
    (into / "config.json").write_text(json.dumps(config))
    shutil.copy(run / "metrics.jsonl", into)


def test_figures_of_a_model_with_one_codebook(make_config, tmp_path, capsys):
    runs, out = [make_runs(make_config, tmp_path / "runs", "vqvae", 2)], tmp_path / "figures"
    pretend(runs[0] / "ema", runs[0] / "ema_n0", init_count=0.0)
    assert drawn(capsys, "1", runs, out) == ["figure_1_photos"]
    assert drawn(capsys, "2", runs, out) == ["figure_2_photos_ema", "figure_2_photos_hard"]
    assert drawn(capsys, "3", runs, out) == ["figure_3_photos"]
    assert drawn(capsys, "6", runs, out) == ["figure_6_photos"]
    assert drawn(capsys, "perturbation", runs, out) == ["figure_perturbation_photos"]
    assert drawn(capsys, "frontier", runs, out) == ["figure_frontier_photos"]
    assert program.run(paper.main, ["--figure=8", *map(str, runs), f"--out={out}"]) == 2
    assert "this figure needs models with two codebooks" in capsys.readouterr().err


def test_figures_of_a_model_with_two_codebooks(make_config, tmp_path, capsys):
    runs, out = [make_runs(make_config, tmp_path / "runs", "vqvae2", 1)], tmp_path / "figures"
    assert set(drawn(capsys, "7", runs, out)) == {
        f"figure_7_photos_{setting}_{level}_held_{quarter}"
        for setting in ("ema", "hard") for level in ("top", "bottom") for quarter in (1, 3)
    }  # fmt: skip
    assert drawn(capsys, "6", runs, out) == ["figure_6_photos_top", "figure_6_photos_bottom"]
    for name in ("3", "8", "9"):
        assert drawn(capsys, name, runs, out) == [f"figure_{name}_photos"]


def test_neighborhoods_need_no_runs(tmp_path, capsys):
    for name in ("4", "5", "urlsom_3"):
        assert drawn(capsys, name, [], tmp_path) == [f"figure_{name}"]


def test_the_effect_of_sigma(make_config, tmp_path, capsys, monkeypatch):
    shown = []
    monkeypatch.setattr(paper.urlsom_figures.plots, "neural_selectivity_by_sigma", lambda *values: shown.append(values))
    for sigma, of_train, held_out in ((1.0, [0.9, 0.8], [0.7, 0.6]), (0.5, [0.5, 0.4], [0.3, 0.2])):
        folder = tmp_path / str(sigma)
        folder.mkdir()
        config = make_config("urlsom", replicas=2, steps=4, **{"model.sigma": sigma})
        (folder / "config.json").write_text(json.dumps(config))
        row = {"step": 4, "valid/neural_selectivity_train": of_train, "valid/neural_selectivity_transferred": held_out}
        (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert program.run(paper.main, ["--figure=urlsom_7", str(tmp_path), f"--out={tmp_path}"]) == 0
    _, sigmas, values, title = shown[0]
    assert sigmas == [0.5, 1.0]
    assert values == {"training set": [[0.5, 0.9], [0.4, 0.8]], "held out": [[0.3, 0.7], [0.2, 0.6]]}
    assert "digits" in title
    assert program.run(paper.main, ["--figure=urlsom_7", str(tmp_path / "0.5"), f"--out={tmp_path}"]) == 2
    assert "at least two values of model.sigma; there are 0.5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("figure", "fields", "message"),
    [
        ("3", {"model.quantizer.neighborhood": "none"}, "there is no finished run of the setting 'hard' on photos"),
        ("1", {"model.quantizer.neighborhood": "none"}, "there is no finished run of the setting 'ema_n0' on photos"),
        ("3", {"model.quantizer.radius": 3.0}, "figure 3 needs runs of some of these settings: ema, hard, exponential"),
    ],
)
def test_a_figure_without_its_runs_says_what_it_needs(make_config, tmp_path, capsys, figure, fields, message):
    (tmp_path / "config.json").write_text(json.dumps(make_config(steps=2, **fields)))
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "valid/loss": 0.1, "valid/reconstruction_loss": 0.1}\n')
    assert program.run(paper.main, [f"--figure={figure}", str(tmp_path), f"--out={tmp_path}"]) == 2
    assert capsys.readouterr().err == f"kvae: {message}\n"


def test_a_metric_that_the_model_no_longer_has_is_in_no_table():
    row = {"step": 8, "valid/reconstruction_loss": 0.5, "valid/topographic_error_8": 0.3}
    row |= {"valid/topographic_error_diagonals": 0.2}
    seed = types.SimpleNamespace(evaluations=[row])
    measured = tables.known_measures(seed, {"topographic_error_diagonals": None})
    assert measured == {"loss": 0.5, "steps_10": 8, "steps_20": 8, "topographic_error_diagonals": 0.2}
