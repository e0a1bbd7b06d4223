"""A finished run in a notebook: what `kvae.load` promises, and what it says to a mistake."""

import concurrent.futures
import json
import pathlib

import jax
import numpy as np
import pytest

import kvae
from kvae import main
from kvae.core import program
from kvae.core.errors import InputError
from kvae.training.config.sections import load_data
from kvae.training.evaluate import Evaluator
from kvae.training.parallel.devices import Replicas, make_mesh
from kvae.training.train import train
from kvae.training.workdir.checkpoint import Checkpoints
from kvae.training.workdir.journal import read_metrics
from runs import assert_same_run

pytestmark = pytest.mark.usefixtures("undrawn")

ROOT = pathlib.Path(__file__).parents[1]
REPLICAS = 2


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def workdir(trained_run):
    """A run of two levels."""
    return str(trained_run("vqvae2"))


def test_a_run_is_its_config_its_model_and_its_codebooks(workdir):
    run = kvae.load(workdir)
    assert run.step == 4
    assert json.loads(json.dumps(run.config)) == json.loads((pathlib.Path(workdir) / "config.json").read_text())
    assert run.metrics == read_metrics(workdir)
    assert {name: w.shape for name, w in run.codebooks.items()} == {"top": (4, 8, 8), "bottom": (4, 8, 8)}
    leaves = run.variables["codebook"]["quantizer_top"]
    np.testing.assert_array_equal(run.codebooks["top"].reshape(32, 8), leaves["codewords"])
    assert leaves["step"] == 4


def test_images_go_to_codes_and_back_as_in_the_model(workdir, images):
    run = kvae.load(workdir)
    codes = run.encode(images)
    assert {name: (c.shape, c.dtype) for name, c in codes.items()} == {
        "top": ((3, 4, 4), np.int32), "bottom": ((3, 8, 8), np.int32)
    }  # fmt: skip
    for name, expected in run.model.apply(run.variables, images, method="encode").items():
        np.testing.assert_array_equal(codes[name], expected)
    decoded, same = run.decode(codes), run.reconstruct(images)
    assert decoded.dtype == same.dtype == np.uint8
    # Rounding may differ in the last bit: one is compiled with the encoder, one without.
    assert np.max(np.abs(decoded.astype(int) - same)) <= 1
    assert run.decode({name: c[:1] for name, c in codes.items()}).shape == (1, 32, 32, 3)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ({"top": [[[32]]], "bottom": [[[0]]]}, "codes of 'top' run from 32 to 32; they must be in 0 to 31"),
        ({"top": [[[-1]]], "bottom": [[[0]]]}, "codes of 'top' run from -1 to -1"),
        ({"top": [[[0]]]}, "codes lack the codebook 'bottom'"),
        ({"tpo": [[[0]]]}, "codes has no field 'tpo'; did you mean 'top'"),
    ],
)
def test_codes_that_are_none(workdir, codes, message):
    with pytest.raises(InputError, match=message):
        kvae.load(workdir).decode(codes)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((2, 32, 32, 1), np.uint8, r"images are uint8\[2, 32, 32, 1\]; they must be uint8\[b, h, w, 3\]"),
        ((32, 32, 3), np.uint8, r"they must be uint8\[b, h, w, 3\]"),
        ((2, 32, 32, 3), np.float32, r"images are float32"),
        ((2, 30, 32, 3), np.uint8, "images are 30 x 32; height and width must be multiples of 8"),
    ],
)
def test_images_that_do_not_fit(workdir, shape, dtype, message):
    with pytest.raises(InputError, match=message):
        kvae.load(workdir).encode(np.zeros(shape, dtype))


def test_runs_steps_and_replicas_that_are_not_there(workdir, tmp_path):
    with pytest.raises(InputError, match=r"is no run: it has no config\.json"):
        kvae.load(str(tmp_path / "none"))
    with pytest.raises(InputError, match="has no checkpoint of step 3; it has 4"):
        kvae.load(workdir, step=3)
    with pytest.raises(InputError, match=r"replica is 1; .* has 1, from 0"):
        kvae.load(workdir, replica=1)
    (tmp_path / "empty").mkdir()
    path = tmp_path / "empty" / "config.json"
    path.write_text(json.dumps(kvae.load(workdir).config))
    with pytest.raises(InputError, match="has no checkpoint yet"):
        kvae.load(str(tmp_path / "empty"))
    for text, message in (('{"seed": 0', "it is not JSON"), ("{}", "it has no seed")):
        path.write_text(text)
        with pytest.raises(InputError, match=f"config.json is not the config of a run: {message}"):
            kvae.load(str(tmp_path / "empty"))


def test_each_replica_opens_as_a_run_of_its_own(make_config, tmp_path, images):
    config = make_config(replicas=REPLICAS, steps=4, evaluate_every_steps=4)
    train(config, str(tmp_path / "run"), jax.devices()[:1])
    runs = [kvae.load(str(tmp_path / "run"), replica=i) for i in range(REPLICAS)]
    for run in runs:
        assert run.codebooks["codebook"].shape == (4, 8, 8)
        assert run.reconstruct(images).shape == images.shape
    assert np.any(runs[0].codebooks["codebook"] != runs[1].codebooks["codebook"])
    with pytest.raises(InputError, match=r"replica is 2; .* has 2, from 0"):
        kvae.load(str(tmp_path / "run"), replica=2)
    row = read_metrics(str(tmp_path / "run"))[-1]
    dataset, _ = load_data(config)
    alone = Replicas(1, make_mesh(1, jax.devices()[:1]))
    for i, run in enumerate(runs):
        # What opens under a replica's number is what was measured under it.
        variables = jax.tree.map(lambda leaf: leaf[None], run.variables)
        found = Evaluator(run.model, alone, dataset, 8).evaluate([variables], np.ones(1, bool)).row
        np.testing.assert_allclose(found["valid/reconstruction_loss"], row["valid/reconstruction_loss"][i], rtol=1e-5)


def test_the_best_checkpoint_is_that_of_the_mean_over_finite_replicas(make_config, tmp_path, monkeypatch):
    """Of five evaluations the second has the lowest mean, without the replica that is lost. It is kept on resume."""
    losses = iter([[0.5, 0.5], [0.3, float("nan")], [0.4, 0.4], [0.6, 0.2], [0.7, 0.7]])
    measured = Evaluator.evaluate

    def pretended(self, *arguments):
        evaluation = measured(self, *arguments)
        return evaluation._replace(row=evaluation.row | {"valid/loss": next(losses)})

    monkeypatch.setattr(Evaluator, "evaluate", pretended)
    every = dict(log_every_steps=2, evaluate_every_steps=2, checkpoint_every_steps=2)
    for steps in (6, 10):
        train(make_config(replicas=REPLICAS, steps=steps, **every), str(tmp_path), jax.devices()[:1])
    checkpoints = Checkpoints(str(tmp_path), read_only=True)
    assert checkpoints.steps() == [4, 8, 10]  # the best and the last two
    assert checkpoints.best() == 4
    checkpoints.close()
    assert kvae.load(str(tmp_path), step="best").step == 4


def test_training_in_a_program_is_training_by_the_command(data_dir, tmp_path):
    """In a thread, as a server would, and in two parts; fields that are not given take their defaults."""
    fields = [f"--config.dataset.data_dir={data_dir}", "--config.evaluate_every_steps=2"]
    fields.append("--config.optimizer.schedule=constant")  # in two parts, others are not what they are in one
    chosen = f"{ROOT}/configs/photos_vqvae.py:smoke"
    assert program.run(main.main, [f"--config={chosen}", f"--workdir={tmp_path / 'command'}", *fields]) == 0
    config = kvae.read_config(chosen)
    config.dataset.data_dir, config.evaluate_every_steps, config.steps = data_dir, 2, 2
    config.optimizer.schedule = "constant"
    del config.seed
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        assert thread.submit(kvae.train, config, str(tmp_path / "program")).result().step == 2
    config.steps = 4
    run = kvae.train(config.to_dict(), str(tmp_path / "program"))
    assert (run.step, run.workdir) == (4, str(tmp_path / "program"))
    assert_same_run(tmp_path / "command", tmp_path / "program")
