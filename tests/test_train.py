"""The training loop: devices, resumption, replicas, what a run leaves, and how it stops."""

import functools
import json
import logging
import pathlib

import jax
import numpy as np
import pytest

import kvae
from kvae import models
from kvae.errors import InputError
from kvae.training import devices as meshes
from kvae.training import loop as train
from kvae.training.checkpoint import Checkpoints
from kvae.training.journal import read_metrics
from kvae.training.step import initial_state, over_replicas, train_step

RATES = ("steps_per_second", "images_per_second")


def run(config, workdir, devices=1):
    return train.train(config, str(workdir), jax.devices()[:devices])


def final_state(workdir, step=None):
    checkpoints = Checkpoints(str(workdir), read_only=True)
    state = checkpoints.restore_as_saved(checkpoints.steps()[-1] if step is None else step)
    checkpoints.close()
    return state


def rows(workdir):
    return [{k: v for k, v in row.items() if k not in RATES} for row in read_metrics(str(workdir))]


def assert_same_run(one, other):
    jax.tree.map(np.testing.assert_array_equal, final_state(one), final_state(other))
    assert rows(one) == rows(other)


def states_and_step(config, devices, seeds):
    """A state on so many devices, and the compiled step."""
    model = models.build(config["model"], mean=(120.0,) * 3, std=(60.0,) * 3)
    optimizer = train.make_optimizer(**config["optimizer"])
    replicas = len(seeds)
    mesh = meshes.make_mesh(replicas, jax.devices()[:devices])
    sharding = meshes.state_sharding(mesh, replicas)
    init = over_replicas(functools.partial(initial_state, model, optimizer, (32, 32, 3)), replicas)
    step = over_replicas(functools.partial(train_step, model, optimizer, config["micro_batches"]), replicas)
    state = jax.jit(init, out_shardings=sharding)(np.array(seeds) if replicas > 1 else np.int32(seeds[0]))
    step = jax.jit(step, donate_argnums=0, out_shardings=sharding)
    batches = meshes.batch_sharding(mesh, replicas)

    def advance(state, images):
        return step(state, meshes.to_devices(batches, images))

    return state, advance


def images(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def total_loss(state):
    return np.asarray(state.interval.metrics["loss"])


@pytest.mark.parametrize("model", ["vqvae", "vqvae2", "urlsom"])
def test_eight_devices_are_one(make_config, model):
    config = make_config(model)
    one, advance_one = states_and_step(config, 1, [0])
    eight, advance_eight = states_and_step(config, 8, [0])
    for t in range(20):
        before = total_loss(one), total_loss(eight)
        one, eight = advance_one(one, images(16, t)), advance_eight(eight, images(16, t))
        if t == 0:
            for a, b in [(one.params, eight.params), (one.collections, eight.collections)]:
                jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), a, b)
            np.testing.assert_allclose(total_loss(one), total_loss(eight), rtol=1e-5)
        losses = total_loss(one) - before[0], total_loss(eight) - before[1]
        np.testing.assert_allclose(*losses, rtol=1e-3)


@pytest.mark.parametrize("devices", [1, 8])
def test_micro_batches_are_one_batch(make_config, devices):
    whole, advance_whole = states_and_step(make_config(), devices, [0])
    parts, advance_parts = states_and_step(make_config(micro_batches=2), devices, [0])
    whole, parts = advance_whole(whole, images(16, 0)), advance_parts(parts, images(16, 0))
    for a, b in [(whole.params, parts.params), (whole.collections, parts.collections)]:
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), a, b)
    np.testing.assert_allclose(total_loss(whole), total_loss(parts), rtol=1e-5)


@pytest.mark.parametrize("model", ["vqvae", "urlsom"])
def test_each_replica_is_the_run_with_its_seed(make_config, model):
    config = make_config(model)
    together, advance = states_and_step(config, 1, [3, 4, 5])
    alone = [states_and_step(config, 1, [seed]) for seed in (3, 4, 5)]
    alone_states = [state for state, _ in alone]
    for t in range(20):
        batch = np.stack([images(8, 100 * i + t) for i in range(3)])
        together = advance(together, batch)
        alone_states = [step(state, x) for state, (_, step), x in zip(alone_states, alone, batch, strict=True)]
        tolerance = 1e-5 if t == 0 else 1e-3
        np.testing.assert_allclose(total_loss(together), [total_loss(s) for s in alone_states], rtol=tolerance)


def test_a_run_leaves_what_the_contract_says(make_config, tmp_path):
    assert run(make_config("vqvae2"), tmp_path / "run") == 12
    names = {path.relative_to(tmp_path / "run").parts[0] for path in (tmp_path / "run").rglob("*")}
    events = {name for name in names if name.startswith("events.out.tfevents.")}
    assert names - events == {"config.json", "checkpoints", "metrics.jsonl", "figures"}
    assert events
    assert {path.name for path in (tmp_path / "run" / "figures").iterdir()} == {
        "reconstructions.png", "curves.png",
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


def test_a_damaged_checkpoint_falls_back_to_the_one_before(make_config, tmp_path, caplog, whole):
    config = make_config()
    run({**config, "steps": 8}, tmp_path / "hurt")
    for path in (tmp_path / "hurt" / "checkpoints" / "8" / "state").rglob("*"):
        if path.is_file() and path.stat().st_size > 100:
            path.write_bytes(path.read_bytes()[:50])
    with caplog.at_level(logging.WARNING, "kvae"):
        assert kvae.load(str(tmp_path / "hurt")).step == 4
        assert "checkpoint 8 is damaged" in caplog.text
        with pytest.raises(InputError, match=r"no checkpoint in .* can be read \(tried \[8\]\)"):
            kvae.load(str(tmp_path / "hurt"), step=8)
        caplog.clear()
        run(config, tmp_path / "hurt")
    assert "checkpoint 8 is damaged" in caplog.text
    assert (tmp_path / "hurt" / "checkpoints" / "damaged-8").exists()
    assert_same_run(whole, tmp_path / "hurt")


def test_what_is_measured_of_a_replica_that_failed_is_not_a_number():
    metrics = {"valid/loss": [0.5, 0.25], "valid/psnr": [20.0, 21.0]}
    assert train.without_failed(metrics, np.array([True, True])) is metrics
    left = train.without_failed(metrics, np.array([True, False]))
    assert left["valid/loss"][0] == 0.5 and np.isnan(left["valid/loss"][1]) and np.isnan(left["valid/psnr"][1])


def test_a_mistake_before_the_first_checkpoint_can_be_mended_in_the_same_folder(make_config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(make_config(batch_size=64)))
    assert run(make_config(steps=2), tmp_path) == 2
    assert json.loads((tmp_path / "config.json").read_text())["batch_size"] == 8


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_a_seed_out_of_range_is_refused(make_config, tmp_path, seed):
    with pytest.raises(InputError, match=f"seed is {seed}; it must be 0 or larger"):
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
    changed = make_config(batch_size=16, **{"model.neighborhood": "none"})
    with pytest.raises(InputError, match=r"batch_size 8 -> 16; model.neighborhood hard -> none; choose another"):
        run(changed, tmp_path)
    assert before == {path: path.read_bytes() for path in pathlib.Path(tmp_path).rglob("*") if path.is_file()}


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(make_config, tmp_path):
    run(make_config(steps=4), tmp_path)
    good = final_state(tmp_path, 4)
    # As a run that goes wrong after step 4: another learning rate in the middle of it.
    config = json.loads((tmp_path / "config.json").read_text())
    config["optimizer"]["learning_rate"] = 1e30
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"the loss is not finite at step \d+; .* lower optimizer.learning_rate"):
        run(make_config(**{"optimizer.learning_rate": 1e30}), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, final_state(tmp_path), good)


def test_a_replica_that_fails_is_frozen_and_the_rest_go_on(make_config):
    state, advance = states_and_step(make_config(), 1, [0, 1])
    state = advance(state, np.stack([images(8, 0), images(8, 1)]))
    broken = jax.tree.map(lambda leaf: leaf.at[1].set(np.nan), state.params)
    state = advance(state.replace(params=broken), np.stack([images(8, 2), images(8, 3)]))
    state = advance(state, np.stack([images(8, 4), images(8, 5)]))
    assert state.finite.tolist() == [True, False]
    assert state.step.tolist() == [3, 1]
    assert state.collections["codebook"]["quantizer"]["step"].tolist() == [3, 1]


def test_a_dying_codebook_is_named_with_the_remedy(make_config, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(train, "DYING_STEPS", 4)
    fields = {"model.neighborhood": "none", "model.update_empty": False, "model.init_count": 0.0}
    with caplog.at_level(logging.WARNING, "kvae"):
        run(make_config(steps=8, **fields, **{"model.grid_shape": (32, 32)}), tmp_path)
    assert caplog.text.count("the codebook is dying") == 1
    assert "model.neighborhood='hard'" in caplog.text


def test_a_request_to_stop_saves_and_a_second_start_goes_on(make_config, tmp_path, monkeypatch, whole):
    config = make_config()
    monkeypatch.setattr(train.StopSignal, "requested", lambda self, step: step == 7)
    assert run(config, tmp_path / "parts") == 7
    monkeypatch.undo()
    assert run(config, tmp_path / "parts") == 12
    assert_same_run(whole, tmp_path / "parts")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be 1 or larger"),
        ({"log_every_steps": 5}, r"evaluate_every_steps is 6; it must be a multiple of log_every_steps \(5\)"),
        ({"micro_batches": 3}, r"batch_size is 8; it must be a multiple of 3 \(1 devices, 3 micro-batches\)"),
        ({"model.grid_shape": (0,)}, "grid_shape is"),
        ({"optimizer.momentum": 0.9}, "optimizer has no field 'momentum'; it has clip_norm, learning_rate, warmup"),
        ({"optimizer": {"learning_rate": 1e-3, "warmup": ()}}, "the optimizer has no clip_norm; configs/photos_vqvae"),
        ({"learning_rate": 1e-3}, "config has no field 'learning_rate'"),
        ({"dataset": {"name": "photos", "size": 32}}, "the dataset has no mean"),
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
    meshes.check_batch_size(16, mesh, 2)
    with pytest.raises(InputError, match=r"batch_size is 12; it must be a multiple of 8 \(8 devices\)"):
        meshes.check_batch_size(12, mesh)


def test_a_jax_that_does_not_know_an_option_compiles_without_it(monkeypatch, caplog):
    meshes.compiler_options.cache_clear()
    assert meshes.compiler_options() == meshes.CPU_OPTIONS
    monkeypatch.setattr(meshes, "CPU_OPTIONS", {"xla_cpu_no_such_option": "1"})
    meshes.compiler_options.cache_clear()
    with caplog.at_level(logging.WARNING, "kvae"):
        assert meshes.compiler_options() == {}
    assert "xla_cpu_no_such_option" in caplog.text
    meshes.compiler_options.cache_clear()


def test_another_number_of_devices_goes_on_where_it_stopped(make_config, tmp_path, whole):
    config = make_config()
    run({**config, "steps": 4}, tmp_path / "changed", devices=8)
    run(config, tmp_path / "changed", devices=2)
    for one, other in zip(rows(whole), rows(tmp_path / "changed"), strict=True):
        np.testing.assert_allclose(one["train/loss"], other["train/loss"], rtol=1e-3)
