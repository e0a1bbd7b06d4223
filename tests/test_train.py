"""The training loop: devices, resumption, replicas, what a run leaves, and how it stops."""

import contextlib
import functools
import json
import logging
import pathlib
import re
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvae
from kvae import data, models
from kvae.errors import InputError
from kvae.figures import maps
from kvae.models.autoencoder import Autoencoder
from kvae.models.model import Model, Objective
from kvae.training import devices as devices_module
from kvae.training import journal, loop
from kvae.training.checkpoint import Checkpoints
from kvae.training.evaluate import Evaluator
from kvae.training.journal import Journal, read_metrics
from kvae.training.optimizer import make_optimizer
from kvae.training.replicas import one_of, over_axis
from kvae.training.step import initial_state, train_step
from runs import RATES, assert_same_run, final_state, images, rows, run, states_and_step

pytestmark = pytest.mark.usefixtures("undrawn")


def total_losses(groups):
    return np.concatenate([np.asarray(group.interval.metrics["loss"]) for group in groups])


def params_and_collections(groups):
    return [(group.params, group.collections) for group in groups]


@pytest.mark.parametrize("model", ["vqvae", "vqvae2", "urlsom"])
def test_eight_devices_are_one(make_config, model):
    config = make_config(model)
    _, one, advance_one = states_and_step(config, 1)
    _, eight, advance_eight = states_and_step(config, 8)
    for t in range(20):
        before = total_losses(one), total_losses(eight)
        batch = images(16, t)[None]
        one, eight = advance_one(one, batch), advance_eight(eight, batch)
        if t == 0:
            assert_close(params_and_collections(one), params_and_collections(eight))
            np.testing.assert_allclose(total_losses(one), total_losses(eight), rtol=1e-5)
        losses = total_losses(one) - before[0], total_losses(eight) - before[1]
        np.testing.assert_allclose(*losses, rtol=1e-3)


def assert_close(one, other):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), one, other)


@pytest.mark.parametrize("devices", [1, 8])
def test_micro_batches_are_one_batch(make_config, devices):
    _, whole, advance_whole = states_and_step(make_config(), devices)
    _, parts, advance_parts = states_and_step(make_config(micro_batches=2), devices)
    whole, parts = advance_whole(whole, images(16, 0)[None]), advance_parts(parts, images(16, 0)[None])
    assert_close(params_and_collections(whole), params_and_collections(parts))
    np.testing.assert_allclose(total_losses(whole), total_losses(parts), rtol=1e-5)


@pytest.mark.parametrize("model", ["vqvae", "urlsom"])
def test_each_replica_is_the_run_with_its_seed_bit_for_bit(make_config, model):
    config = make_config(model)
    _, together, advance = states_and_step(config, 1, [3, 4, 5])
    batches = [np.stack([images(8, 100 * i + t) for i in range(3)]) for t in range(5)]
    for batch in batches:
        together = advance(together, batch)
    for i, seed in enumerate((3, 4, 5)):
        _, alone, advance_alone = states_and_step(config, 1, [seed])
        for batch in batches:
            alone = advance_alone(alone, batch[i : i + 1])
        jax.tree.map(np.testing.assert_array_equal, together[i], alone[0])


def test_replicas_that_share_one_vmapped_program_are_those_that_run_in_turns(make_config):
    """An accelerator has one group of all replicas, a CPU a group of each."""
    model = models.build(make_config()["model"], mean=(120.0,) * 3, std=(60.0,) * 3)
    optimizer = make_optimizer(10, clip_norm=1.0)
    batch = {"image": np.stack([images(4, 0), images(4, 1)])}
    init = functools.partial(initial_state, model, optimizer, {"image": batch["image"][0]})
    step = functools.partial(train_step, model, optimizer, 1)
    together = over_axis(init, 2)(np.arange(2, dtype=np.int32))
    together = jax.jit(over_axis(step, 2))(together, batch)
    for replica in range(2):
        alone = jax.tree.map(lambda leaf: leaf[None], one_of(together, replica))
        state = over_axis(init, 1)(np.array([replica], np.int32))
        state = jax.jit(over_axis(step, 1))(state, one_batch(batch, replica))
        assert_close((alone.params, alone.collections), (state.params, state.collections))


def one_batch(batch, replica):
    return {name: array[replica : replica + 1] for name, array in batch.items()}


def test_each_micro_batch_has_random_streams_of_its_own_and_averages_what_forward_passes_update():
    class Noisy(Model):
        @nn.compact
        def objective(self, batch, *, train=True):
            noise = jax.random.normal(self.make_rng("dropout"))
            other = jax.random.normal(self.make_rng("augmentation"))
            seen = self.variable("seen", "mean", lambda: jnp.zeros(()))
            if train and not self.is_initializing():
                seen.value = 0.5 * seen.value + 0.5 * jnp.mean(batch["x"])
            weight = self.param("w", lambda key: jnp.ones(()))
            loss = jnp.mean(batch["x"]) * weight
            return Objective(loss, {"loss": loss, "noise": noise, "square": noise**2, "other": other})

    batch = {"x": jnp.arange(4.0)}
    optimizer = make_optimizer(10)
    for parts in (1, 4):
        state = initial_state(Noisy(), optimizer, batch, np.int32(0))
        state = train_step(Noisy(), optimizer, parts, state, batch)
        metrics = state.interval.metrics
        np.testing.assert_allclose(state.collections["seen"]["mean"], 0.75)  # half of 1.5, once, not four times
        assert metrics["noise"] != metrics["other"]
        spread = metrics["square"] - metrics["noise"] ** 2
        assert (spread > 1e-3) == (parts > 1)


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
        run(make_config(steps=12, **{"model.augmentations": ("flip",)}), tmp_path)


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


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_a_seed_out_of_range_is_refused(make_config, tmp_path, seed):
    with pytest.raises(InputError, match=f"seed is {seed}; it must be an integer, 0 or larger"):
        run(make_config(seed=seed), tmp_path)


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
    monkeypatch.setattr(loop, "open_workdir", lambda *_: None)
    with pytest.raises(InputError, match=r"the loss is not finite at step \d+; .* lower optimizer.learning_rate"):
        run(make_config(**{"optimizer.learning_rate": 1e30}), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, final_state(tmp_path), good)


def test_a_replica_that_fails_is_frozen_measured_as_not_a_number_and_the_rest_go_on(make_config):
    config = make_config()
    replicas, groups, advance = states_and_step(config, 1, [0, 1])
    groups = advance(groups, np.stack([images(8, 0), images(8, 1)]))
    groups[1] = groups[1].replace(params=jax.tree.map(lambda leaf: leaf * np.nan, groups[1].params))
    for t in (2, 4):
        groups = advance(groups, np.stack([images(8, t), images(8, t + 1)]))
    state = replicas.on_host(groups)
    assert state.finite.tolist() == [True, False]
    assert state.step.tolist() == [3, 1]
    assert state.collections["codebook"]["quantizer"]["step"].tolist() == [3, 1]
    model = models.build(config["model"], mean=(120.0,) * 3, std=(60.0,) * 3)
    validation = data.ArrayExamples({"image": images(5, 9)})
    evaluator = Evaluator(model, replicas, data.Dataset(validation, {"validation": validation}), 4)
    evaluation = evaluator.evaluate([group.variables for group in groups], state.finite)
    losses = evaluation.row["valid/loss"]
    assert np.isfinite(losses[0]) and np.isnan(losses[1])
    assert evaluation.mean_loss() == losses[0]


def test_a_dying_codebook_is_named_with_the_remedy(make_config, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(loop, "DYING_STEPS", 4)
    fields = {
        "model.quantizer.neighborhood": "none",
        "model.quantizer.update_empty": False,
        "model.quantizer.init_count": 0.0,
    }
    with caplog.at_level(logging.WARNING, "kvae"):
        run(make_config(steps=8, **fields, **{"model.quantizer.grid_shape": (32, 32)}), tmp_path)
    assert caplog.text.count("the codebook is dying") == 1
    assert "model.quantizer.neighborhood='hard'" in caplog.text


def test_a_request_to_stop_saves_and_a_second_start_goes_on(make_config, tmp_path, monkeypatch, whole):
    config = make_config()
    monkeypatch.setattr(loop.StopSignal, "requested", lambda self, step: step == 7)
    assert run(config, tmp_path / "parts") == 7
    monkeypatch.undo()
    assert run(config, tmp_path / "parts") == 12
    assert_same_run(whole, tmp_path / "parts")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 0}, "config.batch_size is 0; it must be an integer, 1 or larger"),
        ({"log_every_steps": 5}, "evaluate_every_steps is 6; it must be a multiple of log_every_steps, 5"),
        ({"micro_batches": 3}, r"batch_size is 32; it must be a multiple of 3 \(1 devices, 3 micro-batches\)"),
        ({"model.quantizer.grid_shape": (0,)}, "grid_shape is"),
        (
            {"optimizer.momentum": 0.9},
            "optimizer has no field 'momentum'; it has clip_norm, learning_rate, name, schedule, warmup, weight_decay",
        ),
        ({"optimizer.warmup": ((9, 1e-3), (3, 1e-4))}, r"optimizer.warmup is .*; its steps must rise"),
        ({"optimizer.learning_rate": -1.0}, "optimizer.learning_rate is -1.0; it must be a number, 0 or larger"),
        ({"optimizer": 3}, "optimizer is 3; it must be a section of fields"),
        ({"steps": 1.5}, "config.steps is 1.5; it must be an integer"),
        ({"replicas": True}, "config.replicas is True; it must be an integer"),
        ({"learning_rate": 1e-3}, "config has no field 'learning_rate'"),
        ({"dataset.mean": (1.0, 2.0, 3.0)}, r"dataset.mean is \(1.0, 2.0, 3.0\) and dataset.std \(\); give both"),
        ({"dataset.std": (0.0, 1.0, 1.0)}, "dataset.std is .*; it must be a tuple of numbers, each larger than 0"),
        ({"dataset.size": "x"}, "dataset.size is 'x'; it must be an integer"),
        ({"model.quantizer": "kohonen"}, "model.quantizer is 'kohonen'; it must be a section"),
        ({"model.quantizer.name": "kohonnen"}, "model.quantizer.name is 'kohonnen'; did you mean 'kohonen'"),
    ],
)
def test_impossible_runs_leave_nothing_behind(make_config, tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        run(make_config(**fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_batch_that_the_devices_cannot_share(make_config, tmp_path):
    with pytest.raises(InputError, match=r"batch_size is 12; it must be a multiple of 8 \(8 devices\)"):
        run(make_config(batch_size=12), tmp_path, devices=8)


def test_replicas_that_share_the_devices_are_evaluated_on_all_of_them():
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()).reshape(2, 4), ("replica", "data"))
    devices_module.check_batch_size(16, mesh, 2)
    with pytest.raises(InputError, match=r"batch_size is 12; it must be a multiple of 8 \(8 devices\)"):
        devices_module.check_batch_size(12, mesh)


def test_a_jax_that_does_not_know_an_option_compiles_without_it(monkeypatch, caplog):
    devices_module.run_once_options.cache_clear()
    assert devices_module.run_once_options() == devices_module.RUN_ONCE_OPTIONS
    monkeypatch.setattr(devices_module, "RUN_ONCE_OPTIONS", {"xla_cpu_no_such_option": "1"})
    devices_module.run_once_options.cache_clear()
    with caplog.at_level(logging.WARNING, "kvae"):
        assert devices_module.run_once_options() is None
    assert "xla_cpu_no_such_option" in caplog.text
    devices_module.run_once_options.cache_clear()


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
    assert "nothing is left to do" in caplog.text
    assert "compiling" not in caplog.text and "Total: " not in caplog.text


@pytest.mark.drawn
def test_a_picture_that_fails_is_a_warning_and_the_checkpoint_is_there(make_config, tmp_path, monkeypatch, caplog):
    def broken(*arguments, **options):
        raise RuntimeError("no fonts\nat all")

    monkeypatch.setattr(maps, "hit_map", broken)
    monkeypatch.setattr(Autoencoder, "metrics", property(lambda self: {}))  # no curves either
    with caplog.at_level(logging.WARNING, "kvae"):
        assert run(make_config(steps=4, evaluate_every_steps=4), tmp_path) == 4
    assert (tmp_path / "checkpoints" / "4").is_dir()
    assert (tmp_path / "figures" / "codebook_map.png").exists()
    assert "hit_map.png was not drawn: no fonts at all" in caplog.text


def test_the_time_that_is_left_does_not_count_the_compilation(tmp_path, monkeypatch):
    clock = iter([1000.0, 1002.0, 1004.0])  # a long first step is over at 1000; then one second a step
    monkeypatch.setattr(journal, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    with contextlib.closing(Journal(str(tmp_path), first_step=0, steps=11, patience=0, writes=True)) as of_run:
        assert of_run._time_left(0) == ""
        of_run.advance()
        for _ in range(2):
            of_run.advance()
        assert of_run._time_left(3) == "0:00:08"
