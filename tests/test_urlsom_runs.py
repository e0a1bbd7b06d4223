"""Runs of URL-SOM: their files, early stopping, invalid configs, and the baseline without a network."""

import functools
import shutil

import jax
import numpy as np
import pytest

import kvae
from kvae import data
from kvae.core.errors import InputError
from kvae.paper import pixel_map as baseline
from kvae.training.workdir.journal import read_metrics
from runs import final_state, run


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"micro_batches": 2}, "micro_batches is 2; it must be 1, because this model's loss needs the whole batch"),
        ({"patience_evaluations": -1}, "patience_evaluations is -1; it must be an integer >= 0"),
        ({"model.kernel": "box"}, "kernel is 'box'; it must be one of gaussian, student"),
        ({"model.sigma": 0.0}, "sigma is 0.0; it must be a number > 0"),
        ({"model.dropout": 1.0}, "dropout is 1.0; it must be a number >= 0 and < 1"),
        ({"model.flip_probability": 1.5}, "flip_probability is 1.5; it must be a number from 0 to 1"),
        ({"model.collapse_weight": -1.0}, "collapse_weight is -1.0; it must be a number >= 0"),
        ({"model.label_names": tuple("abc")}, "model.label_names has 3 names; digits has 10 classes"),
        ({"model.crop_sizes": (9, 8)}, r"crop_sizes is \(9, 8\)"),
        ({"model.grid_shape": (1,)}, r"grid_shape is \(1,\); the map must have at least two neurons"),
        ({"model.quantizer": "kohonen"}, "model has no field 'quantizer'"),
    ],
)
def test_invalid_runs_leave_no_files(make_config, tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        run(make_config("urlsom", **fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def stopped(make_config, tmp_path_factory):
    """A config, the folder of its run that stopped early, and that of a copy that was resumed two steps before.

    The learning rate is 0 after the first steps, so that the loss stays as it is.
    """
    digits = data.function_of("digits")

    @functools.wraps(digits)
    def few(**fields):
        complete = digits(**fields)
        cut = lambda examples: data.ArrayExamples({k: array[:256] for k, array in examples.arrays.items()})  # noqa: E731
        return data.Dataset(cut(complete.train), {name: cut(part) for name, part in complete.validation.items()})

    config = make_config(
        "urlsom", steps=40, evaluate_every_steps=2, checkpoint_every_steps=2, patience_evaluations=2,
        **{"optimizer.learning_rate": 0.0, "optimizer.warmup": ((3, 1e-3),)},
    )  # fmt: skip
    whole, resumed = tmp_path_factory.mktemp("urlsom") / "whole", tmp_path_factory.mktemp("urlsom") / "resumed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.DATASETS, "digits", few)
        with pytest.MonkeyPatch.context() as undrawn:
            undrawn.setattr("kvae.training.pictures.draw", lambda *of_run: None)
            assert run(config, whole) == 40
        shutil.copytree(whole, resumed)
        shutil.rmtree(resumed / "checkpoints" / str(read_metrics(str(whole))[-1]["step"]))
        assert run(config, resumed) == 40
        rows = (whole / "metrics.jsonl").read_bytes()
        assert run(config, whole) == 40
        assert (whole / "metrics.jsonl").read_bytes() == rows, "a finished run was trained further"
    return config, whole, resumed


def test_early_stopping_is_the_same_after_an_interruption(stopped):
    _, whole, resumed = stopped
    steps = [row["step"] for row in read_metrics(str(whole))]
    losses = [row["valid/loss"] for row in read_metrics(str(whole))]
    assert steps[-1] < 40
    assert np.argmin(losses) == len(losses) - 3
    assert read_metrics(str(resumed))[-1]["step"] == steps[-1]
    jax.tree.map(np.testing.assert_array_equal, final_state(whole), final_state(resumed))


def test_a_run_has_its_pictures_and_opens_in_a_notebook(stopped):
    config, _, folder = stopped
    assert {path.name for path in (folder / "figures").iterdir()} == {
        "curves.png", "index.html", "mean_images.png",
        "hit_map.png", "winners.png", "train_hit_map.png", "train_winners.png",
    }  # fmt: skip
    opened = kvae.load(str(folder))
    pictures = data.load(**{"name": "digits", "size": 16}).validation["validation"].arrays["image"][:5]
    map = opened.map(pictures)
    assert map.shape == (5, *config["model"]["grid_shape"])
    np.testing.assert_allclose(map.sum(axis=(1, 2)), 1, rtol=1e-5)
    np.testing.assert_array_equal(opened.winners(pictures), map.reshape(5, -1).argmax(axis=1))
    assert opened.winners(pictures).dtype == np.int32
    with pytest.raises(InputError, match="is a run of URLSOM, which has no method 'encode'; it has winners, map"):
        opened.encode(pictures)
    with pytest.raises(InputError, match="images are float32"):
        opened.map(pictures.astype(np.float32))


def test_baseline_has_the_metrics_of_the_model(capsys, monkeypatch):
    monkeypatch.setattr(baseline, "MAP_EPOCHS", 5)
    monkeypatch.setattr(baseline, "SEEDS", (0, 1))
    assert baseline.main(["--config=configs/digits_urlsom.py:smoke"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "neural_selectivity_train", "neural_selectivity_transferred", "dead_neurons_train"
    ]  # fmt: skip
    assert 0.3 < float(lines[1].split()[1]) < 0.9  # 20 neurons
