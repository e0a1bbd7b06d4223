"""Runs side by side: what is joined, what is a column, and what is drawn."""

import json
import pathlib

import numpy as np

from kvae.core import program
from kvae.report import __main__ as report
from kvae.runs import comparison
from kvae.runs.seeds import read_seeds
from test_report import make_run, row_of

LAST = {"valid/psnr": 25.0, "valid/codes_used": 100}


def cells(text, label):
    return dict(zip(row_of(text, "run"), row_of(text, label), strict=True))


def test_only_fields_that_differ_are_columns_and_seeds_are_joined(tmp_path):
    one = make_run(tmp_path / "one", [[0.5, 0.7], [0.2, 0.4]], replicas=2, last={"valid/psnr": [25.0, 27.0]})
    more = make_run(tmp_path / "more", [0.6, 0.3], seed=2, last={"valid/psnr": 26.0})
    other = make_run(tmp_path / "other", [0.4, 0.8], quantizer={"neighborhood": "none"}, last=LAST)
    text = comparison.comparison_table(read_seeds([one, more, other]))
    found = cells(text, f"{one}, {more}")
    assert list(found)[:4] == ["run", "seeds", "step", "quantizer.neighborhood"]
    assert found["seeds"] == "3"
    assert found["quantizer.neighborhood"] == "hard"
    assert found["loss"] == "0.3000 ± 0.1000 (0.3000 ± 0.1000)"
    assert found["PSNR (dB)"] == "26.0 ± 1.0 (26.0 ± 1.0)"
    assert found["codes used"] == "—"
    single = cells(text, other)
    assert single["loss"] == "0.8000 (0.4000)"  # the last is not the best
    assert single["codes used"] == "100"


def test_fields_that_only_another_quantiser_has_are_no_columns(tmp_path):
    one = make_run(tmp_path / "one", [0.5])
    fsq = []
    for levels in ((8, 4), (8, 8)):
        fsq.append(make_run(tmp_path / f"fsq{levels[1]}", [0.4]))
        path = pathlib.Path(fsq[-1], "config.json")
        config = json.loads(path.read_text())
        config["model"]["quantizer"] = {"name": "fsq", "levels": levels}
        path.write_text(json.dumps(config))
    assert list(cells(comparison.comparison_table(read_seeds([one, fsq[0]])), one))[3] == "quantizer.name"
    assert "quantizer.levels" not in comparison.comparison_table(read_seeds([one, fsq[0]]))
    assert cells(comparison.comparison_table(read_seeds([one, *fsq])), fsq[1])["quantizer.levels"] == "(8, 8)"


def test_a_field_that_an_older_run_lacks_differs_and_labels_tell_all_lines_apart(tmp_path):
    runs = [make_run(tmp_path / "older", [0.5], optimizer={}), make_run(tmp_path / "newer", [0.4])]
    assert cells(comparison.comparison_table(read_seeds(runs)), runs[0])["optimizer.schedule"] == "—"
    runs.append(make_run(tmp_path / "longer", [0.4, 0.3], optimizer={}))
    (lines,) = {tuple(panel) for panel in comparison.comparison_curves(read_seeds(runs)).values()}
    assert len(lines) == 3


def test_a_run_that_is_not_finished_is_shown_as_far_as_it_is_and_said(tmp_path):
    whole = make_run(tmp_path / "whole", [0.5, 0.4], steps=200)
    part = make_run(tmp_path / "part", [0.5], steps=400)
    text = comparison.comparison_table(read_seeds([whole, part]))
    assert cells(text, part)["step"] == "100"
    assert f"- {part}, seed 0: unfinished, at step 100 of 400" in text


def test_a_model_of_another_kind_has_cells_of_its_own(tmp_path):
    one = make_run(tmp_path / "one", [0.5])
    two = make_run(
        tmp_path / "two", [0.4], dataset="faces", last={"valid/codes_used_top": 3, "valid/codes_used_bottom": 9}
    )
    text = comparison.comparison_table(read_seeds([one, two]))
    assert cells(text, two)["codes used, top"] == "3"
    assert cells(text, two)["codes used, bottom"] == "9"
    assert cells(text, one)["codes used, top"] == "—"
    assert cells(text, two)["name"] == "vqvae2"


def test_curves_are_named_by_what_differs(tmp_path):
    one = make_run(tmp_path / "one", [[0.5, 0.7], [0.2, 0.4]], replicas=2)
    other = make_run(tmp_path / "other", [0.4, 0.8], quantizer={"neighborhood": "none"})
    panels = comparison.comparison_curves(read_seeds([one, other]))
    lines = panels["Losses: reconstruction", "mean squared error"]
    assert list(lines) == ["neighborhood hard", "neighborhood none"]
    steps, values = lines["neighborhood hard"]
    assert steps == [100, 200]
    np.testing.assert_allclose(values, [[0.5, 0.2], [0.7, 0.4]])


def test_the_program_prints_a_table_and_draws_curves(tmp_path, capsys):
    one = make_run(tmp_path / "one", [[0.5, 0.7], [0.2, 0.4]], replicas=2)
    other = make_run(tmp_path / "other", [0.4, 0.8], quantizer={"neighborhood": "none"})
    assert program.run(report.main, [one, other, f"--curves={tmp_path / 'curves.png'}"]) == 0
    assert capsys.readouterr().out.startswith("| run | seeds | step | quantizer.neighborhood | loss |")
    assert pathlib.Path(tmp_path / "curves.png").stat().st_size > 5_000
    assert program.run(report.main, [one, other, "--table=all"]) == 0
    assert "### Table 2, photos" in capsys.readouterr().out
