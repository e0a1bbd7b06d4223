"""Whatever happens to the bytes of a run's folder, a wrong state is never loaded; the user gets one line."""

import errno
import logging
import os
import random
import shutil

import jax
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
from kvae.training.workdir.orbax_manager import Manager
from runs import run


@pytest.fixture(scope="module")
def attack(trained_run, tmp_path_factory):
    """A run with checkpoints at steps 4 and 8, and a folder for damaged copies of it."""
    return Attack(trained_run(steps=8), tmp_path_factory.mktemp("damaged"))


def largest(attack):
    """Returns the largest file of arrays; metadata files may be larger, but are not always read."""
    arrays = [file for file in attack.of_newest if "/d/" in file]
    return max(arrays, key=lambda file: (attack.workdir / file).stat().st_size)


def whole_folder(damage):
    """Extends a damage to all files of a folder, since parts of a single file may never be read."""

    def damage_all(path):
        for file in sorted(path.parent.iterdir()):
            damage(file)

    return damage_all


@pytest.mark.parametrize("damage", DAMAGES)
def test_corrupted_arrays_fall_back_to_the_previous_step(attack, damage, caplog):
    with caplog.at_level(logging.WARNING):
        loaded, resumed = attack.of(largest(attack), whole_folder(DAMAGES[damage]))
    assert resumed == "before"
    assert loaded == "before" or (loaded, damage) == ("newest", "halved")  # half of a file may hold all that load reads
    assert {record.message.partition(" (")[0] for record in caplog.records} == {"checkpoint 8 is corrupted"}


@pytest.mark.parametrize("damage", [*DAMAGES, "flipped"])
def test_no_damage_of_a_checkpoint_is_silently_wrong(attack, damage):
    chance = random.Random(damage)
    for file in chance.sample(attack.of_newest, 4):
        for outcome in attack.of(file, DAMAGES.get(damage) or flipped(chance.random())):
            assert outcome in ("newest", "before"), (file, outcome)


def test_changed_loss_does_not_change_the_best_checkpoint(attack):
    workdir = attack.damage("checkpoints/4/metrics/metrics", lambda path: path.write_text('{"loss": 0.0}'))
    assert kvae.load(workdir, step="best").step == 8


def test_corrupted_checkpoints_are_set_aside_each_time(attack, tmp_path):
    workdir = attack.damage(largest(attack), DAMAGES["emptied"])
    for name in ("corrupted-8", "corrupted-8-2"):
        (attack.scratch / "run" / "checkpoints" / name).mkdir()
    assert attack.outcome(attack.restored) == "before"
    assert (attack.scratch / "run" / "checkpoints" / "corrupted-8-3" / "state").is_dir()
    assert Checkpoints(workdir, read_only=True).steps() == [4]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "out of memory"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), "RESOURCE_EXHAUSTED: Out of memory"),
        (OSError(errno.EMFILE, "x"), "Too many open files"),
        (ValueError("PERMISSION_DENIED: Error opening x [OS error 13: EACCES Permission denied]"), "Permission denied"),
    ],
)
def test_unread_checkpoints_are_not_set_aside(attack, monkeypatch, error, reason):
    def restore(self, step, args):
        raise KeyError("state") from error

    workdir = attack.damage("config.json", lambda path: None)
    monkeypatch.setattr(Manager, "restore", restore)
    for read in (attack.restored, kvae.load):
        with pytest.raises(InputError, match=f"{reason}; no checkpoint is changed; fix this and run the same command"):
            read(workdir)
    assert {path.name for path in (attack.scratch / "run" / "checkpoints").iterdir()} == {"4", "8"}


def test_checkpoint_deleted_while_read_is_not_corrupted(attack, monkeypatch, caplog):
    """A run that trains deletes old checkpoints; the one that is there now is read."""
    workdir = attack.damage("config.json", lambda path: None)
    newest, read = attack.scratch / "run" / "checkpoints" / "8", Checkpoints.variables

    def read_too_late(self, step):
        if newest.exists():
            shutil.rmtree(attack.scratch / "run" / "checkpoints" / "4")
            newest.rename(newest.with_name("12"))
        return read(self, step)

    monkeypatch.setattr(Checkpoints, "variables", read_too_late)
    assert kvae.load(workdir).step == 12
    assert "corrupted" not in caplog.text


@pytest.mark.parametrize("text", ["null", "3", "[]", '"x"', "{", "", '{"seed": null}', "[" * 100_000])
def test_config_of_the_checkpoints_overrides_config_json(attack, make_config, text):
    workdir = attack.damage("config.json", lambda path: path.write_text(text))
    assert kvae.load(workdir).config == attack.config
    (attack.scratch / "run" / "config.json").unlink()
    with pytest.raises(InputError, match="has another config: seed 0 -> 1"):
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


def test_resume_ignores_corrupted_lines_of_the_journal(attack, make_config, caplog):
    def damage(path):
        first, *others = path.read_bytes().splitlines()
        path.write_bytes(b"\n".join([*LINES, first, *LINES, *others, *LINES]))

    workdir = attack.damage("metrics.jsonl", damage)
    assert run(make_config(steps=12, evaluate_every_steps=4), workdir) == 12
    assert [row["step"] for row in read_metrics(workdir)] == [2, 4, 6, 8, 10, 12]
    assert "ignoring 24 corrupted lines" in caplog.text


@given(data=some.data())
def test_any_bytes_in_any_file_load_as_saved_or_raise(attack, data):
    file = data.draw(some.sampled_from(attack.files))
    content = (attack.workdir / file).read_bytes()
    start = data.draw(some.integers(0, len(content)))
    stop = data.draw(some.integers(start, min(len(content), start + 64)) | some.just(len(content)))
    put = data.draw(some.binary(max_size=64) | some.sampled_from([b"null", b"{}", b"[1]", b"1e999", b"-1", b"\n"]))
    workdir = attack.damage(file, lambda path: path.write_bytes(content[:start] + put + content[stop:]))
    assert attack.outcome(attack.loaded) in ("newest", "before")
    read_metrics(workdir)


def test_check_names_the_corrupted_parts(attack, capsys):
    workdir = attack.damage(largest(attack), whole_folder(flipped(0.5)))
    (attack.scratch / "run" / "metrics.jsonl").write_bytes(b'{"step": 2}\nnull\n{"step": 2}\n')
    assert program.run(report.main, ["--check", workdir]) == program.FAILED
    lines = capsys.readouterr().out.replace(workdir, "RUN").splitlines()
    assert lines[0] == "RUN: checkpoint 4: intact"
    assert lines[1].startswith("RUN: checkpoint 8: corrupted (")
    assert lines[2:] == ["RUN: config.json: intact", "RUN: metrics.jsonl: 1 line corrupted, 1 row out of order"]
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
def test_folder_or_pipe_in_place_of_a_file_is_one_line(attack, make_config, name, make):
    def damage(path):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        make(path)

    workdir = attack.damage(name, damage)
    for open_run in (
        lambda: run(make_config(steps=8, evaluate_every_steps=4), workdir),
        lambda: kvae.load(workdir),
    ):
        try:
            open_run()
        except InputError as error:
            assert str(error).isprintable() and str(error)
