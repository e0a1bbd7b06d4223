"""A disk that fills while a run trains: one line, and no traceback of a thread, a log or a file that closes."""

import contextlib
import errno
import logging

import numpy as np
import pytest

import kvae
from disks import full_disk
from kvae.core.errors import InputError
from kvae.models import VQVAE
from kvae.training import pictures
from kvae.training.evaluate import Evaluation
from kvae.training.train import close_at_end
from kvae.training.workdir.journal import Journal
from kvae.training.workdir.logs import logged_to


@pytest.fixture
def journal(tmp_path):
    return Journal(str(tmp_path), first_step=0, steps=4, patience=0, writes=True)


def test_journal_on_a_full_disk_is_one_line_and_closes_its_files(journal, tmp_path, capsys):
    row = {"step": 1, "train/loss": 0.5}
    journal.write(row, "")
    with full_disk(1):
        for act in (lambda: journal.write(row | {"step": 2}, ""), journal.close):
            with pytest.raises(InputError, match=rf"^{tmp_path} cannot be written: File too large; existing files are"):
                act()
    assert journal._file.closed and journal._events._writer._writer.closed
    assert capsys.readouterr().err == ""


def test_events_wait_for_no_thread(journal):
    with full_disk(1), contextlib.suppress(OSError):
        for step in range(500):  # a queue would be full
            journal._events.add_scalar("valid/loss", 0.5, step)
    with pytest.raises(InputError), full_disk(1):
        journal.close()


def test_log_file_on_a_full_disk_prints_no_traceback(tmp_path, capsys):
    with full_disk(10), logged_to(str(tmp_path)):
        logging.getLogger("kvae.test").info("a line that does not fit")
    assert capsys.readouterr().err == "a line that does not fit\n"


def test_reason_of_the_end_counts_for_more_than_an_error_of_close():
    def fail():
        raise InputError("the disk is full")

    with pytest.raises(InputError, match="the loss is not finite"), contextlib.ExitStack() as stack:
        close_at_end(stack, fail)
        raise InputError("the loss is not finite")
    with pytest.raises(InputError, match="the disk is full"), contextlib.ExitStack() as stack:
        close_at_end(stack, fail)


def test_pictures_on_a_full_disk_are_one_line(tmp_path, monkeypatch, caplog):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(VQVAE, "pictures", lambda *arguments: {"hit_map": full, "u_matrix": full})
    monkeypatch.setattr("kvae.plots.curves.draw_training_curves", lambda path, *arguments: full(path))
    monkeypatch.setattr("kvae.plots.index.write_index", lambda folder, *arguments: full(folder))
    evaluation = Evaluation({}, {"counts": np.ones((1, 4))}, {})
    pictures.draw(VQVAE(quantizer=kvae.KohonenVQ((2, 2))), evaluation, {}, [{"step": 4}], tmp_path)
    names = "hit_map.png, u_matrix.png, curves.png, index.html"
    assert caplog.messages == [f"{tmp_path}/{names} were not drawn: No space left on device"]
