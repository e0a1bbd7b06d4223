"""A run's folder: what a run leaves in it, how one that stopped goes on there, and when that is refused."""

import json
import logging
import pathlib
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
from runs import RATES, assert_same_run, final_state, rows, run

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.mark.drawn
def test_a_run_leaves_what_the_contract_says(make_config, tmp_path):
    assert run(make_config("vqvae2"), tmp_path / "run") == 12
    names = {path.relative_to(tmp_path / "run").parts[0] for path in (tmp_path / "run").rglob("*")}
    events = {name for name in names if name.startswith("events.out.tfevents.")}
    assert names - events == {"config.json", "checkpoints", "metrics.jsonl", "figures"}
    assert events
    assert {path.name for path in (tmp_path / "run" / "figures").iterdir()} == {
        "reconstructions.png", "curves.png", "index.html",
        *(f"{kind}_{level}.png" for kind in ("codebook_map", "hit_map", "u_matrix") for level in ("top", "bottom")),
    }  # fmt: skip
    metrics = read_metrics(str(tmp_path / "run"))
    assert [row["step"] for row in metrics] == [2, 4, 6, 8, 10, 12]
    trained = {"train/loss", "train/reconstruction_loss", "train/commitment_loss", *RATES}
    assert trained | {"train/perplexity_top", "train/perplexity_bottom"} < set(metrics[0])
    assert {"valid/loss", "valid/psnr", "valid/codes_used_top", "valid/perplexity_bottom"} < set(metrics[-1])
    assert "valid/loss" not in metrics[0]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert all(0 < value < 255 for value in config["dataset"]["mean"] + config["dataset"]["std"])


@pytest.mark.parametrize("model", ["vqvae", "urlsom"])
def test_replicas_write_lists_and_one_writes_numbers(make_config, tmp_path, model):
    run(make_config(model, replicas=2, steps=4, evaluate_every_steps=4), tmp_path / "two")
    row = read_metrics(str(tmp_path / "two"))[-1]
    assert {len(value) for name, value in row.items() if name != "step" and name not in RATES} == {2}
    run(make_config(model, steps=4, evaluate_every_steps=4, seed=1), tmp_path / "one")
    alone = read_metrics(str(tmp_path / "one"))[-1]
    assert row.keys() == alone.keys()
    np.testing.assert_allclose(row["valid/loss"][1], alone["valid/loss"], rtol=1e-3)


@pytest.fixture(scope="module")
def whole(make_config, tmp_path_factory):
    """An uninterrupted run, which those that were interrupted must equal."""
    workdir = tmp_path_factory.mktemp("whole")
    run(make_config(), workdir)
    return workdir


def test_rows_beyond_the_checkpoint_are_dropped(make_config, tmp_path, whole):
    config = make_config()
    run({**config, "steps": 8, "evaluate_every_steps": 12}, tmp_path / "cut")
    checkpoints = tmp_path / "cut" / "checkpoints"
    (checkpoints / "8").rename(tmp_path / "gone")
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "train/lo')  # as a kill leaves it
    run(config, tmp_path / "cut")
    assert [row["step"] for row in read_metrics(str(tmp_path / "cut"))] == [2, 4, 6, 8, 10, 12]
    assert_same_run(whole, tmp_path / "cut")


def test_more_steps_of_a_rate_that_cools_down_are_allowed_and_said(make_config, tmp_path, caplog):
    config = make_config(**{"optimizer.schedule": "cooldown"})
    run({**config, "steps": 4}, tmp_path)
    with caplog.at_level(logging.WARNING, "kvae"):
        run({**config, "steps": 8}, tmp_path)
    assert "the learning rate now runs as in a run of 8 steps, no longer of 4" in caplog.text


def test_a_run_of_before_a_field_existed_goes_on_with_its_default(make_config, tmp_path, monkeypatch):
    config = make_config(**{"model.augmentations": ()})
    run({**config, "steps": 4}, tmp_path)
    before = json.loads((tmp_path / "config.json").read_text())
    del before["model"]["augmentations"]
    monkeypatch.setattr(Checkpoints, "config", lambda checkpoints: before)
    assert run({**config, "steps": 8}, tmp_path) == 8
    with pytest.raises(InputError, match=r"model\.augmentations"):
        run(make_config(steps=12, **{"model.augmentations": ("flip_horizontal",)}), tmp_path)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(make_config, tmp_path, caplog, whole):
    config = make_config()
    run({**config, "steps": 8}, tmp_path / "hurt")
    for path in (tmp_path / "hurt" / "checkpoints" / "8" / "state").rglob("*"):
        if path.is_file() and path.stat().st_size > 100:
            path.write_bytes(path.read_bytes()[:50])
    with caplog.at_level(logging.WARNING, "kvae"):
        assert kvae.load(str(tmp_path / "hurt")).step == 4
        assert "checkpoint 8 is damaged" in caplog.text
        with pytest.raises(InputError, match=r"checkpoint 8 of .* is damaged \(.*\); it has 4$"):
            kvae.load(str(tmp_path / "hurt"), step=8)
        caplog.clear()
        run(config, tmp_path / "hurt")
    assert "checkpoint 8 is damaged" in caplog.text
    assert (tmp_path / "hurt" / "checkpoints" / "damaged-8").exists()
    assert_same_run(whole, tmp_path / "hurt")


def test_a_mistake_before_the_first_checkpoint_can_be_mended_in_the_same_folder(make_config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(make_config(batch_size=64)))
    assert run(make_config(steps=2), tmp_path) == 2
    assert json.loads((tmp_path / "config.json").read_text())["batch_size"] == 32


def test_when_no_checkpoint_can_be_read_nothing_is_overwritten(make_config, tmp_path):
    run(make_config(steps=4), tmp_path)
    for path in (tmp_path / "checkpoints" / "4" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    before = (tmp_path / "metrics.jsonl").read_bytes()
    for _ in range(2):  # nor when the command is repeated
        with pytest.raises(InputError, match=r"no checkpoint in .* can be read \(tried \[4\]\)"):
            run(make_config(), tmp_path)
        assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_another_config_is_refused_by_the_names_of_what_differs(make_config, tmp_path):
    run(make_config(steps=4), tmp_path)
    before = {path: path.read_bytes() for path in pathlib.Path(tmp_path).rglob("*") if path.is_file()}
    changed = make_config(batch_size=16, **{"model.quantizer.neighborhood": "none"})
    with pytest.raises(
        InputError, match=r"batch_size 32 -> 16; model.quantizer.neighborhood hard -> none; choose another"
    ):
        run(changed, tmp_path)
    assert before == {path: path.read_bytes() for path in pathlib.Path(tmp_path).rglob("*") if path.is_file()}


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(make_config, tmp_path, monkeypatch):
    run(make_config(steps=4), tmp_path)
    good = final_state(tmp_path, 4)
    # As a run that goes wrong after step 4: another learning rate in the middle of it.
    monkeypatch.setattr(story, "open_workdir", lambda *_: None)
    with pytest.raises(InputError, match=r"the loss is not finite at step \d+; .* lower optimizer.learning_rate"):
        run(make_config(**{"optimizer.learning_rate": 1e30}), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, final_state(tmp_path), good)


def test_a_request_to_stop_saves_and_a_second_start_goes_on(make_config, tmp_path, monkeypatch, whole):
    config = make_config()
    monkeypatch.setattr(story.StopSignal, "requested", lambda self, step: step == 7)
    assert run(config, tmp_path / "parts") == 7
    monkeypatch.undo()
    assert run(config, tmp_path / "parts") == 12
    assert_same_run(whole, tmp_path / "parts")


def test_another_number_of_devices_goes_on_where_it_stopped(make_config, tmp_path, whole):
    config = make_config()
    run({**config, "steps": 4}, tmp_path / "changed", devices=8)
    run(config, tmp_path / "changed", devices=2)
    for one, other in zip(rows(whole), rows(tmp_path / "changed"), strict=True):
        np.testing.assert_allclose(one["train/loss"], other["train/loss"], rtol=1e-3)


def test_fewer_steps_than_a_run_has_taken_are_refused_and_its_config_stays(make_config, tmp_path):
    run(make_config(steps=8), tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(InputError, match=r"config.steps is 4, and .* has come to step 8; set it to that or more"):
        run(make_config(steps=4), tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before


@pytest.mark.drawn
def test_the_log_says_how_much_there_is_to_learn_from_and_when_nothing_is_left_to_do(make_config, tmp_path, caplog):
    config = make_config(steps=4, evaluate_every_steps=4)
    with caplog.at_level(logging.INFO, "kvae"):
        run(config, tmp_path)
        first, _ = caplog.text, caplog.clear()
        run(config, tmp_path)
    assert re.search(r"photos: [\d,]+ training examples; held out: validation \d+", first)
    assert "Total: " in first and "index.html" in first
    assert f"{tmp_path} is at step 4 of 4" in caplog.text
    assert "nothing is left to train" in caplog.text
    assert "compiling" not in caplog.text and "Total: " not in caplog.text


@pytest.mark.drawn
def test_a_picture_that_fails_is_a_warning_and_the_checkpoint_is_there(make_config, tmp_path, monkeypatch, caplog):
    def broken(*arguments, **options):
        raise RuntimeError("no fonts\nat all")

    monkeypatch.setattr(codebooks, "draw_hit_map", broken)
    monkeypatch.setattr(Autoencoder, "metrics", property(lambda self: {}))  # no curves either
    with caplog.at_level(logging.WARNING, "kvae"):
        assert run(make_config(steps=4, evaluate_every_steps=4), tmp_path) == 4
    assert (tmp_path / "checkpoints" / "4").is_dir()
    assert (tmp_path / "figures" / "codebook_map.png").exists()
    assert "hit_map.png was not drawn: no fonts at all" in caplog.text
