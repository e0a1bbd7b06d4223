"""Whatever happens to the bytes of a run's folder, a wrong state is never opened, and what is wrong is one line."""

import logging
import os
import random
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as some

import kvae
from damage import DAMAGES, Attack, flipped
from kvae.core import program
from kvae.core.errors import InputError
from kvae.report import __main__ as report
from kvae.training.workdir.checkpoint import Checkpoints
from kvae.training.workdir.journal import read_metrics
from runs import run


@pytest.fixture(scope="module")
def attack(make_config, tmp_path_factory):
    """A run with checkpoints at 4 and 8, and a folder for damaged copies of it."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    run(make_config(steps=8, evaluate_every_steps=4), workdir)
    return Attack(workdir, tmp_path_factory.mktemp("damaged"))


def largest(attack):
    """The largest file of arrays: metadata may be larger, and reading may do without them."""
    arrays = [file for file in attack.of_newest if "/d/" in file]
    return max(arrays, key=lambda file: (attack.workdir / file).stat().st_size)


def of_all_beside(damage):
    """Damages all files of a folder: a part of one file may be out of date, and read by nobody."""

    def of_all(path):
        for file in sorted(path.parent.iterdir()):
            damage(file)

    return of_all


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_step_before_is_taken_where_the_arrays_are_damaged(attack, damage, caplog):
    with caplog.at_level(logging.WARNING):
        assert attack.of(largest(attack), of_all_beside(DAMAGES[damage])) == ("before", "before")
    assert {record.message.partition(" (")[0] for record in caplog.records} == {"checkpoint 8 is damaged"}


@pytest.mark.parametrize("damage", [*DAMAGES, "flipped"])
def test_no_damage_of_any_file_of_a_checkpoint_is_silently_wrong(attack, damage):
    chance = random.Random(damage)
    for file in chance.sample(attack.of_newest, 4):
        for outcome in attack.of(file, DAMAGES.get(damage) or flipped(chance.random())):
            assert outcome in ("newest", "before"), (file, outcome)


def test_a_flipped_loss_makes_no_other_checkpoint_the_best(attack):
    workdir = attack.damage("checkpoints/4/metrics/metrics", lambda path: path.write_text('{"loss": 0.0}'))
    assert kvae.load(workdir, step="best").step == 8


def test_checkpoints_are_set_aside_as_often_as_they_are_damaged(attack, tmp_path):
    workdir = attack.damage(largest(attack), DAMAGES["emptied"])
    for name in ("damaged-8", "damaged-8-2"):
        (attack.scratch / "run" / "checkpoints" / name).mkdir()
    assert attack.outcome(attack.restored) == "before"
    assert (attack.scratch / "run" / "checkpoints" / "damaged-8-3" / "state").is_dir()
    assert Checkpoints(workdir, read_only=True).steps() == [4]


def test_a_step_that_is_taken_away_while_it_is_read_is_no_damage(attack, monkeypatch, caplog):
    """As by a run that saves meanwhile: what is there now is read, and nothing is called damaged."""
    workdir = attack.damage("config.json", lambda path: None)
    newest, read = attack.scratch / "run" / "checkpoints" / "8", Checkpoints.variables

    def taken_away(self, step):
        if newest.exists():
            shutil.rmtree(attack.scratch / "run" / "checkpoints" / "4")
            newest.rename(newest.with_name("12"))
        return read(self, step)

    monkeypatch.setattr(Checkpoints, "variables", taken_away)
    assert kvae.load(workdir).step == 12
    assert "damaged" not in caplog.text


@pytest.mark.parametrize("text", ["null", "3", "[]", '"x"', "{", "", '{"seed": null}', "[" * 100_000])
def test_the_config_of_the_checkpoints_counts_whatever_is_in_config_json(attack, make_config, text):
    workdir = attack.damage("config.json", lambda path: path.write_text(text))
    assert kvae.load(workdir).config == attack.config
    (attack.scratch / "run" / "config.json").unlink()
    with pytest.raises(InputError, match="was made by another config: seed 0 -> 1"):
        run(make_config(steps=8, evaluate_every_steps=4, seed=1), workdir)


LINES = [
    b"\x00\xff\xfe",
    b'{"step": 4, "a": "\xc3',
    b"3",
    b"null",
    b"{}",
    b'{"step": "4"}',
    b'{"step": true}',
    b'{"step": 4, "a": {}}',
]


def test_damaged_lines_of_the_journal_are_left_out_and_the_run_goes_on(attack, make_config, caplog):
    def damage(path):
        first, *others = path.read_bytes().splitlines()
        path.write_bytes(b"\n".join([*LINES, first, *LINES, *others, *LINES]))

    workdir = attack.damage("metrics.jsonl", damage)
    assert run(make_config(steps=12, evaluate_every_steps=4), workdir) == 12
    assert [row["step"] for row in read_metrics(workdir)] == [2, 4, 6, 8, 10, 12]
    assert "16 damaged lines are left out" in caplog.text


@given(data=some.data())
def test_any_bytes_in_any_file_open_as_what_was_saved_or_end_in_one_line(attack, data):
    file = data.draw(some.sampled_from(attack.files))
    content = (attack.workdir / file).read_bytes()
    start = data.draw(some.integers(0, len(content)))
    stop = data.draw(some.integers(start, min(len(content), start + 64)) | some.just(len(content)))
    put = data.draw(some.binary(max_size=64) | some.sampled_from([b"null", b"{}", b"[1]", b"1e999", b"-1", b"\n"]))
    workdir = attack.damage(file, lambda path: path.write_bytes(content[:start] + put + content[stop:]))
    assert attack.outcome(attack.loaded) in ("newest", "before")
    read_metrics(workdir)


def test_a_check_says_what_is_damaged(attack, capsys):
    workdir = attack.damage(largest(attack), of_all_beside(flipped(0.5)))
    (attack.scratch / "run" / "metrics.jsonl").write_bytes(b'{"step": 2}\nnull\n{"step": 2}\n')
    assert program.run(report.main, ["--check", workdir]) == program.FAILED
    shown = capsys.readouterr().out.replace(workdir, "RUN").splitlines()
    assert shown[0] == "RUN: checkpoint 4: intact"
    assert shown[1].startswith("RUN: checkpoint 8: corrupted (")
    assert shown[2:] == ["RUN: config.json: intact", "RUN: metrics.jsonl: 1 corrupted lines, 1 rows out of order"]
    assert program.run(report.main, ["--check", str(attack.workdir)]) == 0


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("config.json", os.mkdir),
        ("config.json", os.mkfifo),
        ("metrics.jsonl", os.mkdir),
        ("metrics.jsonl", os.mkfifo),
        ("checkpoints", os.mkfifo),
    ],
)
def test_a_folder_or_a_pipe_in_the_place_of_a_file_is_no_traceback_and_no_waiting(attack, make_config, name, make):
    def damage(path):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        make(path)

    workdir = attack.damage(name, damage)
    for program_of_run in (
        lambda: run(make_config(steps=8, evaluate_every_steps=4), workdir),
        lambda: kvae.load(workdir),
    ):
        try:
            program_of_run()
        except InputError as error:
            assert str(error).isprintable() and str(error)
