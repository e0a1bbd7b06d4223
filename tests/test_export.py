"""Exported programs: they run without kvae and Flax, for any batch size."""

import errno
import json
import subprocess
import sys

import numpy as np
import pytest

import kvae
from kvae.core.errors import InputError
from kvae.runs import export

ALONE = """
import json, pathlib, sys
import jax.export
import numpy as np

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("kvae", "flax", "orbax"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
folder = pathlib.Path(sys.argv[1])
description = json.loads((folder / "export.json").read_text())
encode, decode = (
    jax.export.deserialize((folder / description["programs"][name]["file"]).read_bytes())
    for name in ("encode", "decode")
)
images = np.load(folder / "images.npy")
outputs = {}
for count in (1, 3):
    codes = encode.call(images[:count])
    outputs |= {f"{name}_{count}": array for name, array in codes.items()}
    outputs[f"images_{count}"] = decode.call(codes)
np.savez(folder / "outputs.npz", **outputs)
assert not {"kvae", "flax", "orbax"} & {name.partition(".")[0] for name in sys.modules}
print(*encode.platforms)
"""


@pytest.fixture(scope="module")
def run(trained_run):
    return kvae.load(str(trained_run("vqvae2")))


def test_exported_programs_equal_the_run_without_kvae_and_flax(run, tmp_path):
    run.export(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["cpu", "cuda", "tpu"]
    with np.load(tmp_path / "outputs.npz") as file:
        outputs = dict(file)
    for count in (1, 3):
        codes = run.encode(images[:count])
        assert {f"{name}_{count}" for name in codes} <= set(outputs)
        for name, expected in codes.items():
            assert outputs[f"{name}_{count}"].dtype == np.int32
            assert (
                np.mean(outputs[f"{name}_{count}"] == expected) > 0.99
            )  # compiled differently: near ties may be resolved differently
        decoded = run.decode({name: outputs[f"{name}_{count}"] for name in codes}).astype(int)
        assert np.max(np.abs(outputs[f"images_{count}"] - decoded)) <= 1


def test_description_has_the_shapes(run, tmp_path):
    run.export(tmp_path, batch=4, size=64)
    description = json.loads((tmp_path / "export.json").read_text())
    assert description["programs"]["encode"] == {
        "file": "encode.jax_export",
        "inputs": {"images": {"dtype": "uint8", "shape": [4, 64, 64, 3]}},
        "outputs": {
            "bottom": {"dtype": "int32", "shape": [4, 16, 16], "range": [0, 31]},
            "top": {"dtype": "int32", "shape": [4, 8, 8], "range": [0, 31]},
        },
    }  # fmt: skip
    assert description["programs"]["decode"]["outputs"] == description["programs"]["encode"]["inputs"]
    assert description["platforms"] == ["cpu", "cuda", "tpu"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": "mod"}, "batch is 'mod'; it must be a letter"),
        ({"batch": True}, "batch is True; it must be a letter"),
        ({"batch": 10**12}, "batch is 1000000000000; it must be a letter"),
        ({"size": -4}, "size is -4; it must be an integer from 1 to 4096"),
        ({"size": 10**12}, "size is 1000000000000; it must be an integer from 1 to 4096"),
        ({"size": "32"}, "size is '32'; it must be an integer"),
        ({"batch": 0}, "batch is 0; it must be a letter such as 'b' for any size, or a size such as 64"),
        ({"batch": "2b"}, "batch is '2b'; it must be a letter"),
        ({"size": 30}, "images are 30 x 30; height and width must be multiples of 8"),
    ],
)
def test_export_rejects_invalid_options(run, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        run.export(tmp_path, **options)
    assert not any(tmp_path.iterdir())


def test_export_after_a_full_disk_succeeds(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(export, "write_text", full_disk)
        with pytest.raises(InputError, match="cannot be written: No space left on device"):
            run.export(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"encode.jax_export", "decode.jax_export"}
    run.export(tmp_path)
    assert (tmp_path / "export.json").exists()


def full_disk(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device")
