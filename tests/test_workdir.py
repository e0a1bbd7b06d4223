"""A run's folder: what a run leaves in it, how a stopped run is resumed there, and when that is refused."""

import dataclasses
import json
import logging
import re

import jax
import numpy as np
import pytest

import kvae
from kvae.core.errors import InputError
from kvae.models.autoencoders.autoencoder import Autoencoder
from kvae.plots import codebooks
from kvae.training import train as story
from kvae.training.workdir.checkpoint import Checkpoints
from kvae.training.workdir.journal import read_metrics
from kvae.training.workdir.run_config import open_workdir
from runs import RATES, assert_same_run, final_state, rows, run

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="session")
def uninterrupted(trained_run):
    """An uninterrupted run of 12 steps, which resumed runs must equal."""
    return trained_run(steps=12)


@pytest.fixture
def finish(make_config):
    """`finish(workdir, **fields)`: resumes a copy of a `trained_run` until step 12; returns the step it reached."""
    return lambda workdir, devices=1, **fields: run(make_config(evaluate_every_steps=4, **fields), workdir, devices)


@pytest.mark.drawn
def test_run_leaves_the_documented_files_and_metrics(make_config, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "kvae"):
        assert run(make_config("vqvae2", steps=4, evaluate_every_steps=4), tmp_path / "run") == 4
    names = {path.relative_to(tmp_path / "run").parts[0] for path in (tmp_path / "run").rglob("*")}
    events = {name for name in names if name.startswith("events.out.tfevents.")}
    assert names - events == {"config.json", "checkpoints", "metrics.jsonl", "figures"}
    assert events
    assert {path.name for path in (tmp_path / "run" / "figures").iterdir()} == {
        "reconstructions.png", "curves.png", "index.html",
        *(f"{kind}_{level}.png" for kind in ("codebook_map", "hit_map", "u_matrix") for level in ("top", "bottom")),
    }  # fmt: skip
    metrics = read_metrics(str(tmp_path / "run"))
    assert [row["step"] for row in metrics] == [2, 4]
    trained = {"train/loss", "train/reconstruction_loss", "train/commitment_loss", *RATES}
    assert trained | {"train/perplexity_top", "train/perplexity_bottom"} < set(metrics[0])
    assert {"valid/loss", "valid/psnr", "valid/codes_used_top", "valid/perplexity_bottom"} < set(metrics[-1])
    assert "valid/loss" not in metrics[0]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert all(0 < value < 255 for value in config["dataset"]["mean"] + config["dataset"]["std"])
    assert re.search(r"photos: [\d,]+ training examples; held out: validation \d+", caplog.text)
    assert "compiling" in caplog.text and "parameters" in caplog.text and "index.html" in caplog.text


def test_complete_run_has_nothing_left_to_train(make_config, copy_of_run, caplog):
    workdir = copy_of_run()
    with caplog.at_level(logging.INFO, "kvae"):
        run(make_config(steps=4, evaluate_every_steps=4), workdir)
    assert f"{workdir} is at step 4 of 4" in caplog.text
    assert "nothing is left to train" in caplog.text
    assert "compiling the training step" not in caplog.text and "parameters" not in caplog.text


@pytest.mark.parametrize("model", ["vqvae", "urlsom"])
def test_replicas_write_lists_and_one_writes_numbers(trained_run, model):
    row = read_metrics(str(trained_run(model, replicas=2)))[-1]
    assert {len(value) for name, value in row.items() if name != "step" and name not in RATES} == {2}
    alone = read_metrics(str(trained_run(model, seed=1)))[-1]
    assert row.keys() == alone.keys()
    np.testing.assert_allclose(row["valid/loss"][1], alone["valid/loss"], rtol=1e-3)


def test_rows_after_the_restored_checkpoint_are_dropped(copy_of_run, tmp_path, uninterrupted, finish):
    workdir = copy_of_run(steps=8)
    (workdir / "checkpoints" / "8").rename(tmp_path / "removed")
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "train/lo')  # as a killed process leaves it
    finish(workdir)
    assert [row["step"] for row in read_metrics(str(workdir))] == [2, 4, 6, 8, 10, 12]
    assert_same_run(uninterrupted, workdir)


def test_changed_cooldown_is_allowed_with_a_warning(make_config, copy_of_run, monkeypatch, caplog):
    workdir, config = str(copy_of_run()), make_config(**{"optimizer.schedule": "cooldown"})
    monkeypatch.setattr(Checkpoints, "config", lambda checkpoints: {**config, "steps": 4})
    open_workdir(workdir, {**config, "steps": 8}, Checkpoints(workdir))
    assert "the learning rate now follows the schedule of a run with 8 steps, not 4" in caplog.text


def test_config_without_a_newer_field_takes_its_default(make_config, copy_of_run, monkeypatch):
    workdir = str(copy_of_run())
    saved = json.loads(json.dumps(make_config(steps=4)))
    assert saved["model"].pop("augmentations") == []
    monkeypatch.setattr(Checkpoints, "config", lambda checkpoints: saved)
    open_workdir(workdir, make_config(), Checkpoints(workdir))
    with pytest.raises(InputError, match=r"model\.augmentations"):
        open_workdir(workdir, make_config(**{"model.augmentations": ("flip_horizontal",)}), Checkpoints(workdir))


def test_corrupted_checkpoint_falls_back_to_the_previous(copy_of_run, caplog, uninterrupted, finish):
    workdir = copy_of_run(steps=8)
    for path in (workdir / "checkpoints" / "8" / "state").rglob("*"):
        if path.is_file() and path.stat().st_size > 100:
            path.write_bytes(path.read_bytes()[:50])
    with caplog.at_level(logging.WARNING, "kvae"):
        assert kvae.load(str(workdir)).step == 4
        assert "checkpoint 8 is corrupted" in caplog.text
        with pytest.raises(InputError, match=r"checkpoint 8 of .* is corrupted \(.*\); other checkpoints: 4$"):
            kvae.load(str(workdir), step=8)
        caplog.clear()
        finish(workdir)
    assert "checkpoint 8 is corrupted" in caplog.text
    assert (workdir / "checkpoints" / "corrupted-8").exists()
    assert_same_run(uninterrupted, workdir)


def test_folder_without_checkpoints_takes_another_config(make_config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(make_config(batch_size=64)))
    open_workdir(str(tmp_path), make_config(), Checkpoints(str(tmp_path)))
    assert json.loads((tmp_path / "config.json").read_text())["batch_size"] == 32


def test_nothing_is_overwritten_if_all_checkpoints_are_corrupted(copy_of_run, finish):
    workdir = copy_of_run()
    for path in (workdir / "checkpoints" / "4" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    before = (workdir / "metrics.jsonl").read_bytes()
    for _ in range(2):  # nor when the command is repeated
        with pytest.raises(InputError, match=r"no checkpoint in .* can be read \(tried \[4\]\)"):
            finish(workdir)
        assert (workdir / "metrics.jsonl").read_bytes() == before


def test_another_config_is_refused_with_the_changed_fields(copy_of_run, finish):
    workdir = copy_of_run()
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    changes = r"batch_size 32 -> 16; model.quantizer.neighborhood hard -> none; choose another"
    with pytest.raises(InputError, match=changes):
        finish(workdir, batch_size=16, **{"model.quantizer.neighborhood": "none"})
    assert before == {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def test_fewer_steps_than_a_run_has_taken_are_refused(copy_of_run):
    workdir = copy_of_run()
    before = (workdir / "config.json").read_bytes()
    config = json.loads(before) | {"steps": 2}
    with pytest.raises(InputError, match=r"config.steps is 2; it must be at least 4, the last checkpoint of"):
        open_workdir(str(workdir), config, Checkpoints(str(workdir)))
    assert (workdir / "config.json").read_bytes() == before


def test_loss_that_is_not_finite_keeps_the_last_good_state(copy_of_run, monkeypatch, finish):
    workdir = copy_of_run()
    good = final_state(workdir, 4)
    # Another learning rate makes the run diverge after step 4.
    monkeypatch.setattr(story, "open_workdir", lambda *_: None)
    with pytest.raises(InputError, match=r"the loss is not finite at step \d+; .* lower optimizer.learning_rate"):
        finish(workdir, **{"optimizer.learning_rate": 1e30})
    jax.tree.map(np.testing.assert_array_equal, final_state(workdir), good)


def test_run_that_was_stopped_ends_like_the_uninterrupted_one(copy_of_run, monkeypatch, uninterrupted, finish):
    workdir = copy_of_run()
    monkeypatch.setattr(story.StopSignal, "requested", lambda self, step: step == 7)
    assert finish(workdir) == 7
    monkeypatch.undo()
    assert finish(workdir) == 12
    assert_same_run(uninterrupted, workdir)


def test_run_resumes_on_another_number_of_devices(copy_of_run, uninterrupted, finish):
    workdir = copy_of_run()
    finish(workdir, devices=8)
    for one, other in zip(rows(uninterrupted), rows(workdir), strict=True):
        np.testing.assert_allclose(one["train/loss"], other["train/loss"], rtol=1e-3)


@pytest.mark.drawn
def test_failing_picture_is_a_warning_after_the_checkpoint(make_config, copy_of_run, monkeypatch, caplog):
    def broken(*arguments, **options):
        raise RuntimeError("no fonts\nat all")

    workdir = copy_of_run()
    monkeypatch.setattr(codebooks, "draw_hit_map", broken)
    metrics = Autoencoder.metrics.fget
    without_panels = lambda self: {name: dataclasses.replace(m, panel=None) for name, m in metrics(self).items()}  # noqa: E731
    monkeypatch.setattr(Autoencoder, "metrics", property(without_panels))  # no curves either
    with caplog.at_level(logging.WARNING, "kvae"):
        assert run(make_config(steps=6, evaluate_every_steps=4), workdir) == 6
    assert (workdir / "checkpoints" / "6").is_dir()
    assert (workdir / "figures" / "codebook_map.png").exists()
    assert "hit_map.png was not drawn: no fonts at all" in caplog.text
