"""Sweeps: the commands of a table, what is skipped, and what happens when a run fails."""

import json
import pathlib
import shlex

import pytest

from kvae import main
from kvae.core import program
from kvae.paper import settings, sweep
from kvae.training.config.sections import flatten

pytestmark = pytest.mark.usefixtures("in_the_project")

EXPERIMENTS = settings.load_experiments(None)


def printed(capsys, *arguments):
    """The arguments of the printed commands, by setting."""
    assert sweep.main([*arguments, "--print"]) == 0
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert all(command[:3] == ["python", "-m", "kvae.main"] for command in commands)
    return {pathlib.Path(main.parse(command[3:])[1]).name: command[3:] for command in commands}


@pytest.mark.parametrize("dataset", EXPERIMENTS["CONFIGS"])
@pytest.mark.parametrize("table", ["3", "4", "peers", "quantizers", "quantizers_65536"])
def test_command_trains_the_setting_that_report_recognises(capsys, tmp_path, table, dataset):
    commands = printed(capsys, f"--table={table}", f"--dataset={dataset}", f"--runs={tmp_path}")
    assert list(commands) == list(EXPERIMENTS["TABLES"][table]["rows"])
    for setting, command in commands.items():
        config, workdir = main.parse(command)
        assert settings.setting_of(json.loads(json.dumps(flatten(config))), EXPERIMENTS) == setting
        assert workdir == f"{tmp_path}/{dataset}/{setting}"
        assert config["replicas"] == EXPERIMENTS["CONFIGS"][dataset]["seeds"]
        assert config["dataset"]["name"] == dataset


def test_finished_runs_are_skipped(capsys, tmp_path):
    for setting, step in (("ema", 800), ("hard", 750)):
        (tmp_path / "photos" / setting).mkdir(parents=True)
        (tmp_path / "photos" / setting / "metrics.jsonl").write_text(f'{{"step": {step}}}\n')
    arguments = ["--table=2", "--dataset=photos", f"--runs={tmp_path}", "--seeds=2"]
    assert list(printed(capsys, *arguments)) == ["hard", "exponential"]
    longer = printed(capsys, *arguments, "--config.steps=900")
    assert list(longer) == ["ema", "hard", "exponential"]
    assert longer["ema"][-1] == "--config.steps=900"


def test_failed_run_is_named_after_all_others_ran(capsys, tmp_path, monkeypatch):
    started = []

    def train(command):
        started.append(command)
        return len(started) != 2

    monkeypatch.setattr(sweep, "run_command", train)
    monkeypatch.setattr(sweep.signal, "signal", lambda *_: None)
    assert sweep.main(["--table=2", "--dataset=photos", f"--runs={tmp_path}"]) == 1
    assert len(started) == 3
    assert "kvae: not finished: hard;" in capsys.readouterr().err


def finish(arguments, losses):
    """Writes the files of a finished run of these arguments of `kvae.main`, with one loss for all its seeds by step."""
    config, workdir = main.parse(arguments)
    folder = pathlib.Path(workdir)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = ("valid/loss", "valid/reconstruction_loss")
    rows = [{"step": step, **dict.fromkeys(names, [loss] * config["replicas"])} for step, loss in losses.items()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return True


def test_table_is_printed_when_all_runs_are_finished(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "run_command", lambda command: finish(command[1:], {400: 0.25, 800: 0.125}))
    monkeypatch.setattr(sweep.signal, "signal", lambda *_: None)
    for _ in range(2):  # the second time all runs are finished
        assert sweep.main(["--table=1", "--dataset=photos", f"--runs={tmp_path}"]) == 0
        table = capsys.readouterr().out
        assert table.startswith("### Table 1, photos")
        assert table.count("| 5 | 125.0 ± 0.0") == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table=9", "--dataset=photos"], "kvae: --table is '9'; it must be one of 1, 2, 3, 4, 5, schedules"),
        (["--table=1", "--dataset=photo"], "kvae: --dataset is 'photo'; did you mean 'photos'?"),
        (["--table=1", "--dataset=photos", "--config.modle.radius=2"], "did you mean 'model'?"),
        (["--table=1", "--dataset=photos", "--experiments=none.py"], "--experiments=none.py: there is no such file"),
    ],
)
def test_mistake_is_one_line_before_anything_is_trained(capsys, arguments, message):
    assert program.run(sweep.main, arguments) == 2
    assert message in capsys.readouterr().err


def test_smoke_form_trains_in_its_own_process(capfd, tmp_path, data_dir):
    arguments = ["--table=2", "--dataset=photos", "--smoke", "--seeds=1", f"--runs={tmp_path}"]
    arguments += ["--config.model.channels=8", "--config.model.residual_blocks=0"]
    arguments += [f"--config.dataset.data_dir={data_dir}"]
    # Else training measures them, and a finished run must have them in its config.
    arguments += ["--config.dataset.mean=(120.0, 120.0, 120.0)", "--config.dataset.std=(60.0, 60.0, 60.0)"]
    commands = printed(capfd, *arguments)
    assert list(commands) == ["ema", "hard", "exponential"]
    for setting in ("ema", "exponential"):  # two finished runs, so that one training is enough
        finish(commands[setting], {4: 0.5})
    assert program.run(sweep.main, arguments) == 0
    table = capfd.readouterr().out
    assert table.startswith("### Table 2, photos")
    assert [line.split("|")[2].strip() for line in table.splitlines()[4:7]] == ["1"] * 3  # seeds
    assert (tmp_path / "smoke" / "photos" / "hard" / "checkpoints").is_dir()
