"""Tables of the paper from synthetic runs with known results."""

import json
import pathlib

import pytest

from kvae import main
from kvae.core import program
from kvae.core.errors import InputError
from kvae.paper import settings, tables
from kvae.report import __main__ as report
from kvae.runs.seeds import read_seeds
from kvae.training.config.sections import flatten

ROOT = pathlib.Path(__file__).parents[1]
EXPERIMENTS = settings.load_experiments(None)
PREFIX = "model.quantizer."
BASE = {name.removeprefix(PREFIX): value for name, value in EXPERIMENTS["BASE"].items() if name.startswith(PREFIX)}


def make_run(
    folder, losses, *, dataset="photos", seed=0, replicas=1, steps=None, channels=64, quantizer=(), last=(), **fields
):
    """Writes the files of a run: `losses` by evaluated step, and more metrics `last` in its last row."""
    steps = steps or 100 * len(losses)
    config = {
        "seed": seed,
        "replicas": replicas,
        "steps": steps,
        "batch_size": 32,
        "evaluate_every_steps": 100,
        "checkpoint_every_steps": 100,
        "dataset": {"name": dataset, "data_dir": ""},
        "model": {
            "name": "vqvae2" if dataset == "faces" else "vqvae",
            "channels": channels,
            "quantizer": {**BASE, **dict(quantizer)},
        },
        "optimizer": {"schedule": "constant"},
    }
    names = ("valid/loss", "valid/reconstruction_loss")
    rows = [{"step": 100 * (i + 1), **dict.fromkeys(names, loss)} for i, loss in enumerate(losses)]
    if rows:
        rows[-1] |= dict(last)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def table(*folders, name="2", dataset="photos"):
    return settings.collect(read_seeds(folders), EXPERIMENTS, name, dataset)


def row_of(text, label):
    """Returns the cells of a row of a table."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def measured(text, label, heading):
    """Returns the cell of a row under a heading."""
    return row_of(text, label)[row_of(text, "setting").index(heading)]


@pytest.mark.parametrize(
    ("losses", "ten", "twenty"),
    [
        ([0.8, 0.12, 0.11, 0.1], 300, 200),  # exactly 1.1 and 1.2 times the lowest count
        ([0.8, 0.1, 0.105, 0.3], 200, 200),  # steps after the lowest loss do not count
        ([0.3, 0.2, 0.1], 300, 300),  # only the lowest loss itself is close enough
        ([0.1, 0.5, 0.5], 100, 100),
        ([0.1], 100, 100),
        ([1.0, 1.0, 1.0], 100, 100),  # a run that learns nothing
    ],
)
def test_steps_until_close_to_the_lowest_loss(tmp_path, losses, ten, twenty):
    measures = settings.measures_of(read_seeds([make_run(tmp_path / "run", losses)])[0])
    assert (measures["steps_10"], measures["steps_20"]) == (ten, twenty)
    assert measures["loss"] == min(losses)


def test_replicas_and_runs_are_averaged_with_sample_deviation(tmp_path):
    metrics = {"valid/perplexity": [200.0, 210.0], "valid/topographic_error_8": [0.5, 0.7], "valid/vectors": 6400}
    two = make_run(tmp_path / "two", [[0.5, 0.6], [0.05, 0.06]], replicas=2, last=metrics)
    metrics = {"valid/perplexity": 220.0, "valid/topographic_error_8": 0.6}
    one = make_run(tmp_path / "one", [0.7, 0.07], seed=2, last=metrics)
    text = tables.markdown_tables([two, one], EXPERIMENTS, "2")
    cells = row_of(text, "hard, 2D")
    assert cells[1:5] == ["3", "60.0 ± 10.0 (+0.0%)", "200 ± 0", "200 ± 0"]
    assert measured(text, "hard, 2D", "perplexity") == "210 ± 10"
    assert measured(text, "hard, 2D", "codes used") == "—"
    assert "perplexity and codes used cover the whole\nset, N = 6,400 vectors." in text
    assert measured(text, "hard, 2D", "topographic error") == "0.60 ± 0.10"


def test_codes_used_are_compared_with_what_vectors_can_reach(tmp_path):
    """512 vectors use 512 (1 - 1 / e) = 323.6 of 512 codes, if all are equally likely."""
    last = {"valid/perplexity": 256.0, "valid/codes_used": 300, "valid/vectors": 512}
    make_run(tmp_path / "hard", [0.5, 0.05], quantizer={"grid_shape": (16, 32)}, last=last)
    text = tables.markdown_tables([str(tmp_path)], EXPERIMENTS, "2")
    assert measured(text, "hard, 2D", "codes used / attainable (%)") == "93"
    assert measured(text, "hard, 2D", "perplexity / K (%)") == "50"


def test_step_cuts_runs_that_have_reached_it(tmp_path):
    make_run(tmp_path / "hard", [0.5, 0.07, 0.05], last={"valid/perplexity": 256.0})
    make_run(tmp_path / "ema", [0.5, 0.08], quantizer={"neighborhood": "none"}, steps=300)
    text = tables.markdown_tables([str(tmp_path)], EXPERIMENTS, "2", step=200)
    assert row_of(text, "hard, 2D")[2] == "70.0 (+0.0%)"
    assert row_of(text, "none (EMA-VQ)")[2] == "80.0 (+14.3%)"
    assert "after step 200;" in text
    later = tables.markdown_tables([str(tmp_path)], EXPERIMENTS, "2", step=300)
    assert row_of(later, "hard, 2D")[2] == "50.0 (+0.0%)"
    assert f"- left out: {tmp_path}/ema, seed 0: unfinished, at step 200 of 300" in later


def test_single_seed_has_no_deviation(tmp_path):
    make_run(tmp_path / "hard", [0.5, 0.05])
    make_run(tmp_path / "ema", [0.5, 0.055], quantizer={"neighborhood": "none"})
    text = tables.markdown_tables([str(tmp_path)], EXPERIMENTS, "2")
    assert row_of(text, "hard, 2D")[1:3] == ["1", "50.0 (+0.0%)"]
    assert row_of(text, "none (EMA-VQ)")[1:3] == ["1", "55.0 (+10.0%)"]
    assert "- missing: exponential (the paper: Gaussian), 2D (exponential)" in text


def test_paper_s_results_are_shown_for_its_data_sets_only(tmp_path):
    make_run(tmp_path / "cifar10", [0.5, 0.0519], dataset="cifar10")
    make_run(tmp_path / "faces", [0.5, 0.00173], dataset="faces", last={
        f"valid/perplexity_{level}": value for level, value in (("top", 300.0), ("bottom", 280.0))
    })  # fmt: skip
    make_run(tmp_path / "photos", [0.5, 0.05])
    text = tables.markdown_tables([str(tmp_path)], EXPERIMENTS, "2")
    cifar10, faces, photos = text.split("### ")[1:]
    assert row_of(cifar10, "hard, 2D")[2:8] == [
        "51.9 (+0.0%)", "52.1 ± 0.2", "200", "5,200 ± 600", "200", "2,500 ± 500"
    ]  # fmt: skip
    assert row_of(faces, "hard, 2D")[2:4] == ["17.3 (+0.0%)", "17.3 ± 0.1"]
    assert measured(faces, "hard, 2D", "perplexity") == "300 / 280"
    assert "paper |" not in photos
    assert "The paper has no results on photos" in photos
    assert "The paper has no" not in cifar10


def test_unfinished_and_diverged_seeds_are_named_and_left_out(tmp_path):
    make_run(tmp_path / "stopped", [0.5, 0.01], steps=800)
    make_run(tmp_path / "begun", [], steps=800, seed=1)
    make_run(tmp_path / "blind", [], steps=100, seed=2)
    (tmp_path / "blind" / "metrics.jsonl").write_text('{"step": 100, "train/loss": 0.1}\n')
    make_run(tmp_path / "two", [[0.5, 0.5], [0.05, None]], seed=3, replicas=2)
    result = table(str(tmp_path))
    assert [seed.number for seed in result.seeds["hard"]] == [3]
    problems = [line.replace(str(tmp_path), "") for line in result.left_out]
    assert problems == [
        "/begun, seed 1: unfinished, at step 0 of 800",
        "/blind, seed 2: it was never evaluated",
        "/stopped, seed 0: unfinished, at step 200 of 800",
        "/two, seed 4: its loss is not finite at step 200",
    ]


def test_runs_of_other_configs_are_named_and_left_out(tmp_path):
    make_run(tmp_path / "a", [0.5, 0.05])
    make_run(tmp_path / "b", [0.5, 0.05], seed=1)
    make_run(tmp_path / "large", [0.5, 0.01], seed=2, batch_size=256, channels=128)
    make_run(tmp_path / "short", [0.5], seed=3)
    make_run(tmp_path / "ema", [0.5, 0.05], quantizer={"neighborhood": "none"}, checkpoint_every_steps=200)
    result = table(str(tmp_path))
    assert [seed.number for seed in result.seeds["hard"]] == [0, 1]
    assert len(result.seeds["ema"]) == 1
    assert result.left_out[0].endswith("batch_size 256, elsewhere 32; model.channels 128, elsewhere 64")
    assert result.left_out[1].endswith(
        "seed 3: its config differs from the rest of the table: steps 100, elsewhere 200"
    )


def test_seed_counts_once(tmp_path):
    first = make_run(tmp_path / "first", [0.5, 0.05])
    again = make_run(tmp_path / "again", [0.5, 0.06])
    result = table(first, again, first)
    assert [seed.workdir for seed in result.seeds["hard"]] == [first]
    assert result.left_out[0] == f"{again}, seed 0: a duplicate of {first}, seed 0"


def test_runs_without_a_setting_are_named(tmp_path):
    run = make_run(tmp_path / "hard", [0.5, 0.05])
    wide = make_run(tmp_path / "wide", [0.5, 0.05], quantizer={"radius": 3.0})
    assert f"- left out: {wide}: not a setting" in tables.markdown_tables([run, wide], EXPERIMENTS, "2")
    with pytest.raises(InputError, match="no run has a setting of table 2"):
        tables.markdown_tables([wide], EXPERIMENTS, "2")


def test_settings_differ_and_fit_their_configs(monkeypatch):
    monkeypatch.chdir(ROOT)
    for setting, fields in EXPERIMENTS["SETTINGS"].items():
        for file in {"configs/photos_sweep.py", "configs/cifar10_vqvae.py"}:
            config, _ = main.parse(
                [f"--config={file}", *(f"--config.{name}={value}" for name, value in fields.items())]
            )
            assert settings.setting_of(json.loads(json.dumps(flatten(config))), EXPERIMENTS) == setting


def test_settings_of_tables_exist():
    for name, entry in EXPERIMENTS["TABLES"].items():
        assert set(entry["rows"]) <= set(EXPERIMENTS["SETTINGS"])
        for dataset, figures in EXPERIMENTS["PUBLISHED"].get(name, {}).items():
            assert dataset in EXPERIMENTS["CONFIGS"]
            assert set(figures) == set(entry["rows"])


def test_program_writes_a_table_or_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    run = make_run(tmp_path / "hard", [0.5, 0.05])
    assert program.run(report.main, [run, "--table=2", f"--out={tmp_path / 'table.md'}"]) == 0
    assert (tmp_path / "table.md").read_text().startswith("### Table 2, photos: Neighbourhoods\n")
    for arguments, message in [
        ([str(tmp_path / "none")], "has no run: no config.json in it or its subfolders"),
        ([run, "--table=9"], "--table is '9'; it must be one of 1, 2, 3"),
        ([run, "--table=2", "--experiments=none.py"], "--experiments=none.py: there is no such file"),
    ]:
        assert program.run(report.main, arguments) == 2
        assert message in capsys.readouterr().err
