"""Forged or corrupted JSON and arrays of shared runs and PyTorch checkpoints: each is one line that names the file."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.numpy

import kvae
from kvae.runs.comparison import comparison_table
from kvae.runs.from_torch.state import quantizer_fields, state_and_arguments
from kvae.runs.seeds import read_seeds
from refusals import refusal

MODELS = pathlib.Path(__file__).parent / "pytorch"
RELEASE = dict(mean=(100, 100, 100), std=(60, 60, 60))


@pytest.fixture(scope="module")
def shared(trained_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared") / "mine"
    kvae.load(str(trained_run(replicas=2))).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(shared, tmp_path):
    return pathlib.Path(shutil.copytree(shared, tmp_path / "copy"))


def rewrite(folder, metadata=None, **arrays):
    """Saves the weights again, with other metadata (text, or a value as JSON) and arrays; None removes an array."""
    path = folder / "model.safetensors"
    kept = {**safetensors.numpy.load_file(path), **arrays}
    kept = {name: array for name, array in kept.items() if array is not None}
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    path.write_bytes(safetensors.numpy.save(kept, metadata={} if metadata is None else {"kvae": text}))


METADATA = {
    "[]": "its metadata 'kvae' is []; it must be a dict",
    "null": "its metadata 'kvae' is None; it must be a dict",
    "3": "its metadata 'kvae' is 3; it must be a dict",
    "{": "its metadata 'kvae' is not JSON",
    "[" * 100_000: "its metadata 'kvae' is not JSON",
    '{"step": -1}': "metadata.step is -1; it must be an integer >= 0",
    '{"step": "4"}': "metadata.step is '4'; it must be an integer",
    '{"step": 1e99}': "metadata.step is 1e+99; it must be an integer",
    '{"step": null}': "metadata.step is None; it must be an integer",
    '{"replica": [1]}': "metadata.replica is [1]; it must be an integer",
    '{"digests": []}': "metadata.digests is []; it must be a dict of strings",
    '{"digests": null}': "metadata.digests is None; it must be a dict of strings",
    '{"digests": {"a": 3}}': "metadata.digests is {'a': 3}; it must be a dict of strings",
    '{"stop": 3}': "metadata has no field 'stop'; did you mean 'step'?",
}


@pytest.mark.parametrize("text", METADATA, ids=lambda text: text[:20])
def test_forged_metadata_of_weights_is_one_line(copy, text):
    rewrite(copy, text)
    line = refusal(kvae.from_pretrained, copy)
    assert METADATA[text] in line
    assert f"{copy}/model.safetensors is corrupted" in line


FLAT = np.zeros((), np.float32)
CODEWORDS = "codebook.quantizer.codewords"
ARRAYS = {
    "scalar": ({CODEWORDS: FLAT}, f"{CODEWORDS} has the shape []; this model expects [32, 8]"),
    "parent": ({"codebook.quantizer": FLAT}, "codebook.quantizer is an array but contains codebook.quantizer.c"),
    "empty": ({"": FLAT}, "'' is not a valid array name"),
    "dots": ({"params..a": FLAT}, "'params..a' is not a valid array name"),
    "missing": ({CODEWORDS: None}, f"lacks {CODEWORDS}"),
    "more codes": ({CODEWORDS: np.zeros((40, 8), np.float32)}, "; a grid_shape of 40 nodes would fit"),
    "integers": ({CODEWORDS: np.zeros((32, 8), np.int8)}, "has the type int8; this model expects float32"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_forged_arrays_of_weights_are_one_line(copy, case):
    arrays, message = ARRAYS[case]
    rewrite(copy, None, **arrays)
    line = refusal(kvae.from_pretrained, copy)
    assert message in line and f"{copy}/model.safetensors" in line


def nested(depth):
    return {"name": "residual", "depth": 2, "quantizer": nested(depth - 1) if depth else None}


CONFIGS = {
    "model": {"model": []},
    "null model": {"model": {"name": None}},
    "list model": {"model": {"name": ["vqvae"]}},
    "dataset": {"dataset": None},
    "dataset name": {"dataset": {"name": 3}},
    "mean": {"dataset": {"name": "photos", "mean": "x", "std": "x"}},
    "replicas": {"replicas": -1},
    "steps": {"steps": "4"},
    "optimizer": {"optimizer": 4},
    "section": {"model": {"name": "vqvae", "quantizer": 3}},
    "deep": {"model": {"name": "vqvae", "quantizer": nested(200)}},
    "deep dataset": {"dataset": {"name": "photos", "more": nested(400)}},
    "quantizer name": {"model": {"name": "vqvae", "quantizer": {"name": {}}}},
    "channels": {"model": {"name": "vqvae", "channels": -1, "quantizer": {"name": "kohonen", "grid_shape": [4, 8]}}},
    "grid": {"model": {"name": "vqvae", "quantizer": {"name": "kohonen", "grid_shape": [[4], None]}}},
}


@pytest.mark.parametrize("case", CONFIGS)
def test_forged_config_of_a_shared_run_is_one_line(copy, case):
    config = json.loads((copy / "config.json").read_text()) | CONFIGS[case]
    (copy / "config.json").write_text(json.dumps(config))
    assert f"{copy}/config.json" in refusal(kvae.from_pretrained, copy)


def test_shared_run_with_a_users_own_part_names_the_import(copy):
    config = json.loads((copy / "config.json").read_text())
    for name in ("mine", "vqvae_of_mine"):
        config["model"]["name"] = name
        (copy / "config.json").write_text(json.dumps(config))
        assert "import your file that adds this name first" in refusal(kvae.from_pretrained, copy)


ARGUMENTS = {
    "grid_dim": 2, "neihborhood": "hard", "count_unit": 0.1, "decay": 0.99, "commitment_cost": 0.25,
    "magic_counter_init": 1.0, "quantizer": "hardsom", "som_cost": 1.0, "another": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("grid_dim", 0, "grid_dim is 0; it must be an integer from 1 to 16"),
        ("grid_dim", -1, "grid_dim is -1; it must be an integer"),
        ("grid_dim", "x", "grid_dim is 'x'; it must be an integer"),
        ("grid_dim", 10**6, "grid_dim is 1000000; it must be an integer"),
        ("neihborhood", None, "neihborhood is None; did you mean 'none'?"),
        ("neihborhood", ["hard"], "neihborhood is ['hard']; did you mean 'hard'?"),
        ("decay", [0.9], "decay is [0.9]; it must be a number"),
        ("decay", float("nan"), "decay is nan; it must be a number"),
        ("som_cost", None, "som_cost is None; it must be a number"),
        ("quantizer", 3, "quantizer is 3; it must be a string"),
        ("count_unit", ..., "count_unit is missing; it must be a number"),
    ],
)
def test_forged_arguments_of_the_release_are_one_line(name, value, message):
    arguments = {f"vq_vae.{key}": argument for key, argument in {**ARGUMENTS, name: value}.items() if argument != ...}
    assert message in refusal(quantizer_fields, arguments, 512)


class Tensor:
    """Stands in for a tensor of PyTorch: `numpy` raises, as PyTorch's does, until the other methods were called."""

    def __init__(self, needs=(), is_quantized=False):
        self.needs, self.is_quantized = {*needs, "float"}, is_quantized

    def _without(self, need):
        made = Tensor(self.needs, self.is_quantized and need != "dequantize")
        made.needs -= {need}
        return made

    detach, to_dense, dequantize, float = (
        lambda self, need=need: self._without(need) for need in ("detach", "to_dense", "dequantize", "float")
    )

    def numpy(self):
        if self.needs:
            raise RuntimeError(f"it needs {min(self.needs)}()")
        return np.ones(3, np.float32)


@pytest.mark.parametrize(
    "tensor", [Tensor(), Tensor(["detach"]), Tensor(["to_dense"]), Tensor(["dequantize"], is_quantized=True)]
)
def test_tensors_with_gradients_sparse_or_quantised_are_converted(tensor):
    state, arguments = state_and_arguments(pathlib.Path("a.pt"), {"module.a": tensor})
    np.testing.assert_array_equal(state["a"], np.ones(3))
    assert arguments == {}


@pytest.mark.parametrize(
    ("loaded", "message"),
    [
        ([], "does not hold a state dict"),
        ({}, "does not hold a state dict"),
        ({3: Tensor()}, "does not hold a state dict"),
        ({None: Tensor()}, "does not hold a state dict"),
        ({"a": [1]}, "does not hold a state dict"),
        ({"model": {}}, "does not hold a state dict"),
        ({"model": {"a": Tensor()}, "run_invariants": [3]}, "run_invariants is [3]; it must be a dict"),
        ({"model": {"a": Tensor()}, "run_invariants": {"args": 3}}, "run_invariants['args'] is 3; it must be a dict"),
        ({"a": Tensor(["meta"])}, "a.pt: a cannot be converted to an array (it needs meta())"),
    ],
)
def test_forged_checkpoints_of_pytorch_are_one_line(loaded, message):
    assert message in refusal(state_and_arguments, pathlib.Path("a.pt"), loaded)


RELEASE_ARRAYS = {
    "codewords": ({"_vq_vae._w": FLAT}, "_vq_vae._w has the shape []; it must be [K, d]"),
    "counter": ({"_vq_vae.counter": np.zeros(2, np.float32)}, "_vq_vae.counter is [0.0, 0.0]; it must be a number of"),
    "nan": ({"_vq_vae.counter": np.array(np.nan, np.float32)}, "_vq_vae.counter is nan; it must be a number of steps"),
    "averages": ({"_vq_vae._ema_w": FLAT}, "has the shape []; this model expects"),
    "no channels": ({"_encoder._conv_3.weight": np.zeros((0, 8, 3, 3), np.float32)}, "model.channels is 0"),
}


@pytest.mark.parametrize("case", RELEASE_ARRAYS)
def test_forged_arrays_of_pytorch_are_one_line(tmp_path, case):
    arrays, message = RELEASE_ARRAYS[case]
    saved = {**safetensors.numpy.load_file(MODELS / "release_vqvae.safetensors"), **arrays}
    safetensors.numpy.save_file(saved, tmp_path / "a.safetensors")
    assert message in refusal(kvae.from_torch, tmp_path / "a.safetensors", **RELEASE)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("mean", 5, "mean is 5; it must be"),
        ("mean", "abc", "mean is 'abc'; it must be"),
        ("std", (1, None, 3), "std is (1, None, 3); it must be"),
        ("std", (1, 2), "std is (1, 2); it must be"),
        ("size", 0, "dataset.size is 0; it must be"),
        ("size", "32", "dataset.size is '32'; it must be"),
        ("quantizer", 5, "quantizer is 5; it must be a dict of fields"),
    ],
)
def test_from_torch_refuses_invalid_arguments(field, value, message):
    assert message in refusal(kvae.from_torch, MODELS / "release_vqvae.safetensors", **{**RELEASE, field: value})


LOSSES = {"step": 4, "valid/loss": [1.0, 2.0], "valid/reconstruction_loss": [1.0, 2.0], "train/perplexity": 3.0}


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0, 3.0], [[1.0, 2.0], [3.0]], [[], []]], ids=repr)
def test_rows_with_lists_of_other_lengths_are_ignored(trained_run, tmp_path, values, caplog):
    workdir = tmp_path / "run"
    workdir.mkdir()
    shutil.copy(trained_run(replicas=2) / "config.json", workdir)
    rows = [LOSSES, LOSSES | {"step": 6, "valid/loss": values, "valid/psnr": values}]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    seeds = read_seeds([str(workdir)])
    assert [[row["valid/loss"] for row in seed.rows] for seed in seeds] == [[1.0], [2.0]]
    assert "metrics.jsonl: ignoring 1 corrupted line" in caplog.text
    assert "| 2 | 4 |" in comparison_table(seeds)


@pytest.mark.parametrize("replicas", [2**31 - 1, 10**6, 0])
def test_huge_number_of_replicas_is_refused_by_reports(trained_run, tmp_path, replicas):
    config = json.loads((trained_run(replicas=2) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"replicas": replicas}))
    line = refusal(read_seeds, [str(tmp_path)])
    assert f"config.replicas is {replicas}; it must be an integer from 1 to 4096" in line
