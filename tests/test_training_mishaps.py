"""Messages and files of a training whose codes die, images disappear, or compile cache is corrupted."""

import contextlib
import json
import logging
import types

import numpy as np
import pytest
from jax._src import compilation_cache

import kvae
from kvae import models
from kvae.core.errors import InputError
from kvae.training import loop
from kvae.training import train as story
from kvae.training.config.sections import validate_config
from kvae.training.parallel.compile_cache import remove_unreadable
from kvae.training.parallel.devices import make_mesh
from kvae.training.workdir.journal import Journal

MAP = kvae.KohonenVQ((2, 2), neighborhood="none")


@pytest.mark.parametrize(
    ("quantizer", "hint"),
    [
        (MAP, "set model.quantizer.neighborhood='hard', init_count=1.0, update_empty=True to bring unused codes"),
        (kvae.ResidualVQ(quantizer=MAP, depth=2), "set model.quantizer.quantizer.neighborhood='hard', init_count"),
        (kvae.KohonenVQ((2, 2)), "a lower optimizer.learning_rate may help"),
        (kvae.FSQ((3, 3)), "a lower optimizer.learning_rate may help"),
    ],
)
def test_collapse_hint_names_fields_that_the_quantizer_has(quantizer, hint):
    assert models.VQVAE(quantizer=quantizer).collapse_hint.startswith(hint)


def test_no_codebook_is_dying_after_one_large_batch(make_config, caplog):
    evaluator = types.SimpleNamespace(
        model=models.VQVAE(quantizer=MAP), replicas=None, dataset=types.SimpleNamespace(train=range(5))
    )
    files = types.SimpleNamespace(journal=types.SimpleNamespace(early_stopping=None))
    of_run = loop.Loop(make_config(), None, evaluator, files, None)
    counts = np.eye(1, 1024) * 1000
    of_run.warn_if_dying({"codebook": counts}, np.ones(1, bool), 1)
    assert not caplog.text
    of_run.warn_if_dying({"codebook": counts}, np.ones(1, bool), loop.LEAST_STEPS)
    assert "1000 vectors used only 1 of 1024 codes since the last log" in caplog.text


def test_unreadable_compiled_programs_are_removed_once(tmp_path, caplog):
    (tmp_path / "jit_intact-cache").write_bytes(compilation_cache.compress_executable(bytes(1000)))
    (tmp_path / "jit_empty-cache").write_bytes(b"")
    (tmp_path / "jit_cut-cache").write_bytes(compilation_cache.compress_executable(bytes(range(256)) * 9)[:-9])
    (tmp_path / "notes").write_bytes(b"")
    with caplog.at_level(logging.WARNING, "kvae"):
        assert [remove_unreadable(tmp_path) for _ in range(2)] == [2, 0]
    assert caplog.text.count("removed 2 unreadable compiled programs from") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"jit_intact-cache", "notes", "kvae-checked"}
    (tmp_path / "jit_later-cache").write_bytes(b"")
    assert remove_unreadable(tmp_path) == 1
    assert remove_unreadable(tmp_path / "nowhere") == 0


@pytest.mark.parametrize("field", ["init_count", "shrink_step", "commitment_weight", "radius", "initial_width"])
def test_numbers_that_overflow_float32_are_refused(field):
    with pytest.raises(InputError, match=rf"{field} is 1e\+39; it must be .*a number .*1e\+30"):
        kvae.KohonenVQ((2, 2), **{field: 1e39})


@pytest.mark.parametrize(("done", "saved"), [(3, [3]), (0, [])])
def test_steps_are_saved_if_an_image_disappears(done, saved):
    of_run, steps = object.__new__(loop.Loop), []
    of_run.save = lambda groups, step, evaluation: steps.append(step)
    of_run.files = types.SimpleNamespace(checkpoints=types.SimpleNamespace(wait=lambda: None))
    with pytest.raises(InputError, match="gone"), of_run.saved_if_it_fails([], done):
        raise InputError("gone cannot be read")
    assert steps == saved


def test_log_names_the_sizes_that_make_compilation_slow(caplog):
    quantizer = {"name": "residual", "depth": 256, "quantizer": {"name": "kohonen", "grid_shape": (1000, 1000)}}
    with caplog.at_level(logging.INFO, "kvae"):
        story.log_compilation({"model": {"name": "vqvae", "channels": 8, "quantizer": quantizer}})
    assert "model vqvae, quantizer.depth 256, quantizer.quantizer.grid_shape (1000, 1000)" in caplog.text
    assert "minutes" in caplog.text


def test_resume_leaves_out_rows_of_another_number_of_replicas(tmp_path, caplog):
    losses = {1: [3.0, 3.0], 2: [2.0], 3: [2.0, 2.0], 4: [], 5: [2.5, [2.5]], 6: [2.1, 2.2]}
    lines = [json.dumps({"step": step, "valid/loss": loss}) for step, loss in losses.items()]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    arguments = {"first_step": 6, "steps": 9, "patience": 1, "writes": True, "replicas": 2}
    with contextlib.closing(Journal(str(tmp_path), **arguments)) as journal:
        assert [row["step"] for row in journal.rows] == [1, 3, 6]
        assert journal.early_stopping.is_over()
    assert "ignoring 3 corrupted lines" in caplog.text


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (
            {"tokens": np.zeros(5, np.int32)},
            r"model vqvae cannot process the data set own \(tokens int32\[5\]\): KeyError: 'image'",
        ),
        ({"image": np.zeros((8, 8, 3), np.float32)}, "images are float32"),
        ({"image": np.zeros((8, 8), np.uint8)}, "images are uint8"),
    ],
)
def test_examples_that_do_not_fit_the_model_are_one_line(make_config, example, message):
    config = validate_config(make_config())
    model = models.build(config["model"], mean=(120.0,) * 3, std=(60.0,) * 3)
    config["dataset"]["name"] = "own"
    with pytest.raises(InputError, match=message):
        story.init_and_step(config, model, example, make_mesh())
