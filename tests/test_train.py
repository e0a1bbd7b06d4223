"""The training loop: devices, replicas and micro-batches change no result, and what cannot be trained is refused."""

import contextlib
import functools
import logging
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kvae import data, models
from kvae.core.errors import InputError
from kvae.models.model import LossAndMetrics, Model
from kvae.training import loop
from kvae.training.best import mean_over_replicas
from kvae.training.evaluate import Evaluator
from kvae.training.optimizer import make_optimizer
from kvae.training.parallel import devices as devices_module
from kvae.training.parallel.devices import over_replicas, select_replica
from kvae.training.step import initial_state, train_step
from kvae.training.workdir import journal
from kvae.training.workdir.journal import Journal
from runs import images, run, states_and_step

pytestmark = pytest.mark.usefixtures("undrawn")


def total_losses(groups):
    return np.concatenate([np.asarray(group.metric_sums.metrics["loss"]) for group in groups])


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
    """A TPU has one group of all replicas, a CPU or GPU a group of each."""
    model = models.build(make_config()["model"], mean=(120.0,) * 3, std=(60.0,) * 3)
    optimizer = make_optimizer(10, clip_norm=1.0)
    batch = {"image": np.stack([images(4, 0), images(4, 1)])}
    init = functools.partial(initial_state, model, optimizer, {"image": batch["image"][0]})
    step = functools.partial(train_step, model, optimizer, 1)
    together = over_replicas(init, 2)(np.arange(2, dtype=np.int32))
    together = jax.jit(over_replicas(step, 2))(together, batch)
    for replica in range(2):
        alone = jax.tree.map(lambda leaf: leaf[None], select_replica(together, replica))
        state = over_replicas(init, 1)(np.array([replica], np.int32))
        state = jax.jit(over_replicas(step, 1))(state, one_batch(batch, replica))
        assert_close((alone.params, alone.collections), (state.params, state.collections))


def one_batch(batch, replica):
    return {name: array[replica : replica + 1] for name, array in batch.items()}


def test_each_micro_batch_has_random_streams_of_its_own_and_averages_what_forward_passes_update():
    class Noisy(Model):
        @nn.compact
        def loss_and_metrics(self, batch, *, train=True):
            noise = jax.random.normal(self.make_rng("dropout"))
            other = jax.random.normal(self.make_rng("augmentation"))
            seen = self.variable("seen", "mean", lambda: jnp.zeros(()))
            if train and not self.is_initializing():
                seen.value = 0.5 * seen.value + 0.5 * jnp.mean(batch["x"])
            weight = self.param("w", lambda key: jnp.ones(()))
            loss = jnp.mean(batch["x"]) * weight
            return LossAndMetrics(loss, {"loss": loss, "noise": noise, "square": noise**2, "other": other})

    batch = {"x": jnp.arange(4.0)}
    optimizer = make_optimizer(10)
    for parts in (1, 4):
        state = initial_state(Noisy(), optimizer, batch, np.int32(0))
        state = train_step(Noisy(), optimizer, parts, state, batch)
        metrics = state.metric_sums.metrics
        np.testing.assert_allclose(state.collections["seen"]["mean"], 0.75)  # half of 1.5, once, not four times
        assert metrics["noise"] != metrics["other"]
        spread = metrics["square"] - metrics["noise"] ** 2
        assert (spread > 1e-3) == (parts > 1)


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_a_seed_out_of_range_is_refused(make_config, tmp_path, seed):
    with pytest.raises(InputError, match=f"seed is {seed}; it must be an integer, 0 or larger"):
        run(make_config(seed=seed), tmp_path)


def test_a_replica_that_fails_is_frozen_measured_as_not_a_number_and_the_rest_go_on(make_config):
    config = make_config()
    replicas, groups, advance = states_and_step(config, 1, [0, 1])
    groups = advance(groups, np.stack([images(8, 0), images(8, 1)]))
    groups[1] = groups[1].replace(params=jax.tree.map(lambda leaf: leaf * np.nan, groups[1].params))
    for t in (2, 4):
        groups = advance(groups, np.stack([images(8, t), images(8, t + 1)]))
    state = replicas.to_host(groups)
    assert state.finite.tolist() == [True, False]
    assert state.step.tolist() == [3, 1]
    assert state.collections["codebook"]["quantizer"]["step"].tolist() == [3, 1]
    model = models.build(config["model"], mean=(120.0,) * 3, std=(60.0,) * 3)
    validation = data.ArrayExamples({"image": images(5, 9)})
    evaluator = Evaluator(model, replicas, data.Dataset(validation, {"validation": validation}), 4)
    evaluation = evaluator.evaluate([group.variables for group in groups], state.finite)
    losses = evaluation.row["valid/loss"]
    assert np.isfinite(losses[0]) and np.isnan(losses[1])
    assert mean_over_replicas(losses) == losses[0]


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
        ({"optimizer.warmup": ((9, 1e-3), (3, 1e-4))}, r"optimizer.warmup is .*; its steps must ascend"),
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


def test_the_time_that_is_left_does_not_count_the_compilation(tmp_path, monkeypatch):
    clock = iter([1000.0, 1002.0, 1004.0])  # a long first step is over at 1000; then one second a step
    monkeypatch.setattr(journal, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    with contextlib.closing(Journal(str(tmp_path), first_step=0, steps=11, patience=0, writes=True)) as of_run:
        assert of_run._time_left(0) == ""
        of_run.advance()
        for _ in range(2):
            of_run.advance()
        assert of_run._time_left(3) == "0:00:08"
