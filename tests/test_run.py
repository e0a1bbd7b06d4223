"""`kvae.load` and `kvae.train`: what a run offers, and the messages for mistakes."""

import concurrent.futures
import functools
import json
import pathlib
import signal

import jax
import numpy as np
import pytest

import kvae
from kvae import main
from kvae.core import program
from kvae.core.errors import InputError
from kvae.runs import opening
from kvae.training.config.sections import build_model, load_data
from kvae.training.evaluate import Evaluator
from kvae.training.parallel.devices import Replicas, make_mesh
from kvae.training.train import train
from kvae.training.workdir.checkpoint import Checkpoints
from kvae.training.workdir.journal import Journal, read_metrics
from runs import assert_same_run

pytestmark = pytest.mark.usefixtures("undrawn")

ROOT = pathlib.Path(__file__).parents[1]
REPLICAS = 2


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def workdir(trained_run):
    """A run with two codebooks."""
    return str(trained_run("vqvae2"))


def test_load_returns_config_metrics_and_codebooks(workdir):
    run = kvae.load(workdir)
    assert run.step == 4
    assert json.loads(json.dumps(run.config)) == json.loads((pathlib.Path(workdir) / "config.json").read_text())
    assert run.metrics == read_metrics(workdir)
    assert {name: w.shape for name, w in run.codebooks.items()} == {"top": (4, 8, 8), "bottom": (4, 8, 8)}
    leaves = run.variables["codebook"]["quantizer_top"]
    np.testing.assert_array_equal(run.codebooks["top"].reshape(32, 8), leaves["codewords"])
    assert leaves["step"] == 4


def test_encode_and_decode_equal_the_model_s_methods(workdir, images):
    run = kvae.load(workdir)
    codes = run.encode(images)
    assert {name: (c.shape, c.dtype) for name, c in codes.items()} == {
        "top": ((3, 4, 4), np.int32), "bottom": ((3, 8, 8), np.int32)
    }  # fmt: skip
    encode = jax.jit(functools.partial(run.model.apply, method="encode"))
    for name, expected in encode(run.variables, images).items():
        np.testing.assert_array_equal(codes[name], expected)
    decoded, reconstructed = run.decode(codes), run.reconstruct(images)
    assert decoded.dtype == reconstructed.dtype == np.uint8
    # Rounding may differ in the last bit: only one of them is compiled with the encoder.
    assert np.max(np.abs(decoded.astype(int) - reconstructed)) <= 1
    assert run.decode({name: c[:1] for name, c in codes.items()}).shape == (1, 32, 32, 3)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (
            {"top": [[[32]]], "bottom": [[[0]]]},
            "codes of 'top' have 32 at .0, 0, 0.; they must be from 0 to 31",
        ),
        ({"top": [[[-1]]], "bottom": [[[0]]]}, "codes of 'top' have -1 at .0, 0, 0."),
        ({"top": [[[0]]]}, "codes lack the codebook 'bottom'"),
        ({"tpo": [[[0]]]}, "codes has no field 'tpo'; did you mean 'top'"),
    ],
)
def test_decode_rejects_invalid_codes(workdir, codes, message):
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
def test_encode_rejects_invalid_images(workdir, shape, dtype, message):
    with pytest.raises(InputError, match=message):
        kvae.load(workdir).encode(np.zeros(shape, dtype))


def test_load_rejects_missing_runs_steps_and_replicas(workdir, tmp_path):
    with pytest.raises(InputError, match=r"is not a run: it has no config\.json"):
        kvae.load(str(tmp_path / "none"))
    with pytest.raises(InputError, match="has no checkpoint at step 3; it has steps 4"):
        kvae.load(workdir, step=3)
    with pytest.raises(InputError, match=r"replica is 1; it must be from 0 to 0 for "):
        kvae.load(workdir, replica=1)
    for replica in ("0", True, 0.0):
        with pytest.raises(InputError, match=f"replica is {replica!r}; it must be an integer"):
            kvae.load(workdir, replica=replica)
    (tmp_path / "empty").mkdir()
    path = tmp_path / "empty" / "config.json"
    path.write_text(json.dumps(kvae.load(workdir).config))
    with pytest.raises(InputError, match="has no checkpoint yet"):
        kvae.load(str(tmp_path / "empty"))
    for text, message in (('{"seed": 0', "it is not JSON"), ("{}", "it has no seed")):
        path.write_text(text)
        with pytest.raises(InputError, match=f"config.json is not the config of a run: {message}"):
            kvae.load(str(tmp_path / "empty"))


def test_each_replica_opens_as_a_run_of_its_own(trained_run, images):
    workdir = str(trained_run(replicas=REPLICAS))
    runs = [kvae.load(workdir, replica=i) for i in range(REPLICAS)]
    for run in runs:
        assert run.codebooks["codebook"].shape == (4, 8, 8)
        assert run.reconstruct(images).shape == images.shape
    assert np.any(runs[0].codebooks["codebook"] != runs[1].codebooks["codebook"])
    with pytest.raises(InputError, match=r"replica is 2; it must be from 0 to 1 for "):
        kvae.load(workdir, replica=2)
    row = read_metrics(workdir)[-1]
    dataset, _ = load_data(runs[0].config)
    one_replica = Replicas(1, make_mesh(1, jax.devices()[:1]))
    for i, run in enumerate(runs):
        # The variables of replica i give the metrics that were logged for replica i.
        variables = jax.tree.map(lambda leaf: leaf[None], run.variables)
        evaluation = Evaluator(run.model, one_replica, dataset, 8).evaluate([variables], np.ones(1, bool)).row
        loss = "valid/reconstruction_loss"
        np.testing.assert_allclose(evaluation[loss], row[loss][i], rtol=1e-5)


def test_best_checkpoint_is_that_of_replicas_that_have_not_failed(make_config, tmp_path, monkeypatch):
    """The first of two equal ones, although a failure makes the mean fall; the checkpoint is kept on resume."""
    failed = float("nan")
    losses = iter([[0.5, 0.5], [0.3, 9.0], [0.3, failed], [0.6, failed], [0.5, failed]])
    evaluate = Evaluator.evaluate

    def evaluate_with_given_loss(self, *arguments):
        evaluation = evaluate(self, *arguments)
        return evaluation._replace(row=evaluation.row | {"valid/loss": next(losses)})

    monkeypatch.setattr(Evaluator, "evaluate", evaluate_with_given_loss)
    every = dict(log_every_steps=2, evaluate_every_steps=2, checkpoint_every_steps=2)
    for steps in (6, 10):
        train(make_config(replicas=REPLICAS, steps=steps, **every), str(tmp_path), jax.devices()[:1])
    checkpoints = Checkpoints(str(tmp_path), read_only=True)
    assert checkpoints.steps() == [4, 8, 10]  # the best and the last two
    assert checkpoints.best() == 4
    checkpoints.close()
    assert kvae.load(str(tmp_path), step="best").step == 4


def test_load_rejects_a_checkpoint_of_another_model(workdir, monkeypatch):
    def build_wider(config):
        return build_model({**config, "model": {**config["model"], "channels": 16}})

    monkeypatch.setattr(opening, "build_model", build_wider)
    with pytest.raises(InputError, match=r"checkpoint 4 of .*: params\..* has the shape \[.*\]; this model expects"):
        kvae.load(workdir)


def test_train_equals_the_command(make_config, tmp_path):
    """`kvae.train` in a thread, as in a server, and in two parts; missing fields have their defaults."""
    config = make_config(steps=4, evaluate_every_steps=2)
    file = tmp_path / "config.py"
    file.write_text(
        f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({config!r})\n"
    )
    assert program.run(main.main, [f"--config={file}", f"--workdir={tmp_path / 'command'}"]) == 0
    config = kvae.read_config(str(file))
    config.steps = 2
    del config.seed
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        assert thread.submit(kvae.train, config, str(tmp_path / "notebook")).result().step == 2
    config.steps = 4
    run = kvae.train(config.to_dict(), str(tmp_path / "notebook"))
    assert (run.step, run.workdir) == (4, str(tmp_path / "notebook"))
    assert_same_run(tmp_path / "command", tmp_path / "notebook")


@pytest.fixture
def signalled(monkeypatch):
    """`signalled(number)`: the next training step receives this signal."""

    def at_next_step(number):
        def advance(journal):
            monkeypatch.undo()
            signal.raise_signal(number)
            journal.advance()

        monkeypatch.setattr(Journal, "advance", advance)

    return at_next_step


def test_interrupt_saves_then_ends_a_loop_of_runs(make_config, tmp_path, default_signal_handlers, signalled):
    signalled(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        for seed in range(3):
            kvae.train(make_config(steps=4, seed=seed), str(tmp_path / str(seed)))
    assert kvae.load(str(tmp_path / "0")).step == 1
    assert not (tmp_path / "1").exists()
    assert kvae.train(make_config(steps=4, seed=0), str(tmp_path / "0")).step == 4


def test_own_handler_receives_the_signal_after_saving(make_config, tmp_path, signalled):
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(kvae.load(str(tmp_path)).step))
    signalled(signal.SIGTERM)
    try:
        kvae.train(make_config(steps=4), str(tmp_path))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [1]
