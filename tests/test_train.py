"""Training: devices, replicas and micro-batches change no result; impossible runs are refused."""

import contextlib
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
from kvae.training import train as story
from kvae.training.best import best_step, mean_over_replicas
from kvae.training.config.sections import validate_config
from kvae.training.evaluate import Evaluator
from kvae.training.optimizer import make_optimizer
from kvae.training.parallel import devices as devices_module
from kvae.training.parallel.devices import over_replicas, select_replica
from kvae.training.step import initial_state, train_step
from kvae.training.workdir import journal
from kvae.training.workdir.journal import Journal
from runs import images, programs, run

pytestmark = pytest.mark.usefixtures("undrawn")


def total_losses(groups):
    return np.concatenate([np.asarray(group.metric_sums.metrics["loss"]) for group in groups])


@pytest.fixture(autouse=True)
def right_crops(request):
    """Compiles URL-SOM, which crops images, with the default emitters."""
    if "urlsom" in request.node.name:
        request.getfixturevalue("default_emitters")


def params_and_collections(groups):
    return [(group.params, group.collections) for group in groups]


@pytest.mark.parametrize("model", ["vqvae", "vqvae2", "urlsom"])
def test_eight_devices_equal_one(make_config, model):
    config = make_config(model)
    (_, init_one, advance_one), (_, init_eight, advance_eight) = programs(config, 1), programs(config, 8)
    one, eight = init_one([0]), init_eight([0])
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
def test_micro_batches_equal_one_batch(make_config, devices):
    _, init, advance = programs(make_config(), devices)
    _, init_parts, advance_parts = programs(make_config(micro_batches=2), devices)
    whole, parts = advance(init([0]), images(16, 0)[None]), advance_parts(init_parts([0]), images(16, 0)[None])
    assert_close(params_and_collections(whole), params_and_collections(parts))
    np.testing.assert_allclose(total_losses(whole), total_losses(parts), rtol=1e-5)


@pytest.mark.parametrize("model", ["vqvae", "urlsom"])
def test_each_replica_equals_the_run_with_its_seed(make_config, model):
    """Bit for bit."""
    config, seeds = make_config(model), (3, 4, 5)
    (_, init, advance), (_, init_alone, advance_alone) = programs(config, 1, len(seeds)), programs(config, 1)
    together = init(seeds)
    batches = [np.stack([images(8, 100 * i + t) for i in range(3)]) for t in range(5)]
    for batch in batches:
        together = advance(together, batch)
    for i, seed in enumerate(seeds):
        alone = init_alone([seed])
        for batch in batches:
            alone = advance_alone(alone, batch[i : i + 1])
        jax.tree.map(np.testing.assert_array_equal, together[i], alone[0])


def test_vmapped_replicas_equal_replicas_in_turns(make_config):
    """A TPU trains all replicas in one vmapped program, a CPU or GPU one after the other."""
    config = validate_config(make_config())
    model = models.build(config["model"], mean=(120.0,) * 3, std=(60.0,) * 3)
    init, step = story.init_and_step(config, model, {"image": images(1, 0)[0]}, devices_module.make_mesh())
    batch = np.stack([images(8, 0), images(8, 1)])
    together = jax.jit(over_replicas(init, 2))(np.arange(2, dtype=np.int32))
    together = jax.jit(over_replicas(step, 2))(together, {"image": batch})
    _, init_alone, advance_alone = programs(make_config(), 1)
    for replica in range(2):
        (alone,) = advance_alone(init_alone([replica]), batch[replica : replica + 1])
        vmapped = jax.tree.map(lambda leaf: leaf[None], select_replica(together, replica))
        assert_close((alone.params, alone.collections), (vmapped.params, vmapped.collections))


class Noisy(Model):
    """Reports its random numbers, and keeps a running mean of its inputs."""

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


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_micro_batches_differ_in_noise_and_share_one_update(micro_batches):
    batch = {"x": jnp.arange(4.0)}
    optimizer = make_optimizer(10)
    state = initial_state(Noisy(), optimizer, batch, {}, np.int32(0))
    state = train_step(Noisy(), optimizer, micro_batches, state, batch)
    metrics = state.metric_sums.metrics
    np.testing.assert_allclose(state.collections["seen"]["mean"], 0.75)  # half of 1.5, once, not four times
    assert metrics["noise"] != metrics["other"]
    variance = metrics["square"] - metrics["noise"] ** 2
    assert (variance > 1e-3) == (micro_batches > 1)


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_seeds_outside_int32_are_refused(make_config, tmp_path, seed):
    with pytest.raises(InputError, match=f"seed is {seed}; it must be an integer (>= 0|from 0 to 2147483647)"):
        run(make_config(seed=seed), tmp_path)


def test_a_failed_replica_is_frozen_and_the_others_continue(make_config):
    config = make_config()
    replicas, init, advance = programs(config, 1, 2)
    groups = advance(init([0, 1]), np.stack([images(8, 0), images(8, 1)]))
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


def test_a_dying_codebook_is_reported_once(make_config, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(loop, "DYING_STEPS", 3)
    monkeypatch.setattr(loop, "DYING_SHARE", 2.0)  # every codebook is dying
    with caplog.at_level(logging.WARNING, "kvae"):
        run(make_config(steps=4, log_every_steps=1, evaluate_every_steps=4), tmp_path)
    assert caplog.text.count("the codebook is collapsing") == 1


@pytest.mark.parametrize(("used", "warns"), [(51, True), (52, False)])  # of 1,024 codes; the limit is 5%
def test_a_codebook_is_dying_below_a_share_of_its_codes(make_config, caplog, used, warns):
    config = make_config(**{"model.quantizer.neighborhood": "none", "model.quantizer.update_empty": False})
    model = models.build(config["model"], mean=(120.0,) * 3, std=(60.0,) * 3)
    evaluator = types.SimpleNamespace(model=model, replicas=None, dataset=types.SimpleNamespace(train=range(10**6)))
    files = types.SimpleNamespace(journal=types.SimpleNamespace(early_stopping=None))
    of_run = loop.Loop(config, None, evaluator, files, None)
    counts = np.where(np.arange(1024) < used, 100, 0)[None]
    with caplog.at_level(logging.WARNING, "kvae"):
        of_run.warn_if_dying({"codebook": counts}, np.ones(1, bool), loop.DYING_STEPS - 1)
        assert not caplog.text
        of_run.warn_if_dying({"codebook": counts}, np.ones(1, bool), loop.DYING_STEPS)
    assert (f"used only {used} of 1024 codes" in caplog.text) == warns
    assert ("model.quantizer.neighborhood='hard'" in caplog.text) == warns


def test_the_best_step_is_the_first_with_the_lowest_finite_loss():
    assert best_step({4: 0.2, 1: 0.5, 2: 0.2, 3: float("nan"), 5: None}) == 2
    assert best_step({1: None}) is None
    assert best_step({1: [9.0, 0.5], 2: [None, 0.6], 3: [None, None]}) == 1  # the mean of the rest has not fallen
    assert best_step({1: 0.5, 2: [0.25, 0.5]}) == 2
    assert mean_over_replicas(0.5) == 0.5
    assert mean_over_replicas([float("inf"), 0.5, 0.25]) == 0.375
    assert mean_over_replicas([float("nan")]) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 0}, "config.batch_size is 0; it must be an integer >= 1"),
        ({"log_every_steps": 5}, "evaluate_every_steps is 6; it must be a multiple of log_every_steps \\(5\\)"),
        ({"micro_batches": 3}, r"batch_size is 32; it must be a multiple of 3 \(1 devices, 3 micro-batches\)"),
        ({"model.quantizer.grid_shape": (0,)}, "grid_shape is"),
        (
            {"optimizer.momentum": 0.9},
            "optimizer has no field 'momentum'; its fields are clip_norm, learning_rate, name, schedule",
        ),
        ({"optimizer.warmup": ((9, 1e-3), (3, 1e-4))}, r"optimizer.warmup is .*; its steps must increase"),
        ({"optimizer.learning_rate": -1.0}, "optimizer.learning_rate is -1.0; it must be a number >= 0"),
        ({"optimizer": 3}, "optimizer is 3; it must be a section of fields"),
        ({"steps": 1.5}, "config.steps is 1.5; it must be an integer"),
        ({"replicas": True}, "config.replicas is True; it must be an integer"),
        ({"learning_rate": 1e-3}, "config has no field 'learning_rate'"),
        ({"dataset.mean": (1.0, 2.0, 3.0)}, r"dataset.mean is \(1.0, 2.0, 3.0\) and dataset.std is \(\); set both"),
        ({"dataset.std": (0.0, 1.0, 1.0)}, "dataset.std is .*; it must be a tuple of numbers, each > 0"),
        ({"dataset.size": "x"}, "dataset.size is 'x'; it must be an integer"),
        ({"model.quantizer": "kohonen"}, "model.quantizer is 'kohonen'; it must be a section"),
        ({"model.quantizer.name": "kohonnen"}, "model.quantizer.name is 'kohonnen'; did you mean 'kohonen'"),
    ],
)
def test_impossible_runs_leave_nothing_behind(make_config, tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        run(make_config(**fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_batch_must_divide_over_the_devices(make_config, tmp_path):
    with pytest.raises(InputError, match=r"batch_size is 12; it must be a multiple of 8 \(8 devices\)"):
        run(make_config(batch_size=12), tmp_path, devices=8)


def test_the_evaluation_batch_must_divide_over_all_devices():
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()).reshape(2, 4), ("replica", "data"))
    devices_module.check_batch_size(16, mesh, 2)
    with pytest.raises(InputError, match=r"batch_size is 12; it must be a multiple of 8 \(8 devices\)"):
        devices_module.check_batch_size(12, mesh)


def test_unknown_compiler_options_are_left_out(monkeypatch, caplog):
    devices_module.run_once_options.cache_clear()
    assert devices_module.run_once_options() == devices_module.RUN_ONCE_OPTIONS
    monkeypatch.setattr(devices_module, "RUN_ONCE_OPTIONS", {"xla_cpu_no_such_option": "1"})
    devices_module.run_once_options.cache_clear()
    with caplog.at_level(logging.WARNING, "kvae"):
        assert devices_module.run_once_options() is None
    assert "xla_cpu_no_such_option" in caplog.text
    devices_module.run_once_options.cache_clear()


def test_the_remaining_time_leaves_out_compilation(tmp_path, monkeypatch):
    clock = iter([1000.0, 1002.0, 1004.0])  # a long first step is over at 1000; then one second a step
    monkeypatch.setattr(journal, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    with contextlib.closing(Journal(str(tmp_path), first_step=0, steps=11, patience=0, writes=True)) as of_run:
        assert of_run._time_left(0) == ""
        of_run.advance()
        for _ in range(2):
            of_run.advance()
        assert of_run._time_left(3) == "0:00:08"
