"""Comparison of runs: which seeds are averaged, which fields are columns, and the curves."""

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


def test_differing_fields_are_columns_and_seeds_are_averaged(tmp_path):
    one = make_run(tmp_path / "one", [[0.5, 0.7], [0.2, 0.4]], replicas=2, last={"valid/psnr": [25.0, 27.0]})
    more = make_run(tmp_path / "more", [0.6, 0.3], seed=2, last={"valid/psnr": 26.0})
    other = make_run(tmp_path / "other", [0.4, 0.8], quantizer={"neighborhood": "none"}, last=LAST)
    counted = make_run(tmp_path / "counted", [0.4, 0.8], channels=32, last=LAST | {"valid/vectors": 6_400})
    text = comparison.comparison_table(read_seeds([one, more, other, counted]))
    row = cells(text, f"{one}, {more}")
    assert list(row)[:5] == ["run", "seeds", "step", "channels", "quantizer.neighborhood"]
    assert row["seeds"] == "3"
    assert row["quantizer.neighborhood"] == "hard"
    assert row["loss"] == "0.3000 ± 0.1000 (0.3000 ± 0.1000)"
    assert row["PSNR (dB)"] == "26.0 ± 1.0 (26.0 ± 1.0)"
    assert row["codes used"] == "—"
    single = cells(text, other)
    assert single["loss"] == "0.8000 (0.4000)"  # the last and the best value
    assert single["codes used"] == "100"
    assert cells(text, counted)["codes used"] == "100 (N = 6,400)"


def test_fields_of_one_quantizer_only_are_not_columns(tmp_path):
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


def test_missing_field_is_a_column_and_labels_are_unique(tmp_path):
    runs = [make_run(tmp_path / "older", [0.5], optimizer={}), make_run(tmp_path / "newer", [0.4])]
    assert cells(comparison.comparison_table(read_seeds(runs)), runs[0])["optimizer.schedule"] == "—"
    runs.append(make_run(tmp_path / "longer", [0.4, 0.3], optimizer={}))
    (lines,) = {tuple(panel) for panel in comparison.comparison_curves(read_seeds(runs)).values()}
    assert len(lines) == 3


def test_mean_and_std_are_columns_only_if_the_data_are_equal(tmp_path):
    measured = {"name": "photos", "data_dir": "", "mean": [1.0, 2.0, 3.0], "std": [1.0, 1.0, 1.0]}
    one = make_run(tmp_path / "one", [0.5])
    for name, fields, expected in [
        ("larger", {"size": 64, "mean": [1.5, 2.0, 3.0]}, ["dataset.size"]),
        ("set", {"mean": [0.0, 0.0, 0.0]}, ["dataset.mean"]),
    ]:
        other = make_run(tmp_path / name, [0.5])
        for run, dataset in ((one, measured), (other, measured | fields)):
            path = pathlib.Path(run, "config.json")
            path.write_text(json.dumps(json.loads(path.read_text()) | {"dataset": {"size": 32} | dataset}))
        assert comparison.differing_fields(comparison.group_seeds(read_seeds([one, other]))) == expected


def test_narrow_table_has_a_column_for_each_of_few_configs(tmp_path):
    one, two = make_run(tmp_path / "one", [0.5]), make_run(tmp_path / "two", [0.4], channels=32)
    seeds = read_seeds([one, two])
    wide, narrow = (comparison.comparison_table(seeds, narrow=narrow).split("\n\n") for narrow in (False, True))
    rows = [line.strip("| ").split(" | ") for line in wide[0].splitlines() if "---" not in line]
    turned = [line.strip("| ").split(" | ") for line in narrow[0].splitlines()]
    assert turned.pop(1) == ["---"] * 3
    assert turned == [list(row) for row in zip(*rows, strict=True)] and wide[1:] == narrow[1:]


def test_unfinished_run_is_shown_and_named(tmp_path):
    finished = make_run(tmp_path / "finished", [0.5, 0.4], steps=200)
    part = make_run(tmp_path / "part", [0.5], steps=400)
    text = comparison.comparison_table(read_seeds([finished, part]))
    assert cells(text, part)["step"] == "100"
    assert f"- {part}, seed 0: unfinished, at step 100 of 400" in text


def test_models_have_columns_for_their_own_metrics(tmp_path):
    one = make_run(tmp_path / "one", [0.5])
    two = make_run(
        tmp_path / "two", [0.4], dataset="faces", last={"valid/codes_used_top": 3, "valid/codes_used_bottom": 9}
    )
    text = comparison.comparison_table(read_seeds([one, two]))
    assert cells(text, two)["codes used, top"] == "3"
    assert cells(text, two)["codes used, bottom"] == "9"
    assert cells(text, one)["codes used, top"] == "—"
    assert cells(text, two)["name"] == "vqvae2"


def test_curves_are_labelled_by_differing_fields(tmp_path):
    one = make_run(tmp_path / "one", [[0.5, 0.7], [0.2, 0.4]], replicas=2)
    other = make_run(tmp_path / "other", [0.4, 0.8], quantizer={"neighborhood": "none"})
    panels = comparison.comparison_curves(read_seeds([one, other]))
    lines = panels["Losses: reconstruction", "mean squared error"]
    assert list(lines) == ["neighborhood hard", "neighborhood none"]
    steps, values = lines["neighborhood hard"]
    assert steps == [100, 200]
    np.testing.assert_allclose(values, [[0.5, 0.2], [0.7, 0.4]])
    counted = make_run(tmp_path / "counted", [0.4], last=LAST | {"valid/vectors": 6_400})
    panels = comparison.comparison_curves(read_seeds([counted]))
    assert ("Codes in use (N = 6,400)", "codes used at least once") in panels


def test_curves_name_sections_where_fields_alone_are_unclear(tmp_path):
    one = make_run(tmp_path / "one", [0.5], optimizer={"name": "muon", "decay": 0.1}, quantizer={"decay": 0.8})
    other = make_run(tmp_path / "other", [0.4], optimizer={"name": "adam", "decay": 0.2}, quantizer={"decay": 0.9})
    for lines in comparison.comparison_curves(read_seeds([one, other])).values():
        first, second = (set(label.split(", ")) for label in lines)
        assert first == {"optimizer muon", "optimizer.decay 0.1", "quantizer.decay 0.8"}
        assert second == {"optimizer adam", "optimizer.decay 0.2", "quantizer.decay 0.9"}


def test_program_prints_a_table_and_draws_curves(tmp_path, capsys):
    one = make_run(tmp_path / "one", [[0.5, 0.7], [0.2, 0.4]], replicas=2)
    other = make_run(tmp_path / "other", [0.4, 0.8], quantizer={"neighborhood": "none"})
    assert program.run(report.main, [one, other, f"--curves={tmp_path / 'curves.png'}"]) == 0
    assert capsys.readouterr().out.startswith("| run | seeds | step | quantizer.neighborhood | loss |")
    assert pathlib.Path(tmp_path / "curves.png").stat().st_size > 5_000
    assert program.run(report.main, [one, other, "--table=all"]) == 0
    assert "### Table 2, photos" in capsys.readouterr().out
