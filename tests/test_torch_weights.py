"""`kvae.from_torch`: published models reconstruct as they do in PyTorch, and unknown files are one line."""

import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

import kvae
from kvae.core.errors import InputError
from kvae.runs.from_torch.state import grid_shape, quantizer_fields

MODELS = pathlib.Path(__file__).parent / "pytorch"
RELEASE = dict(mean=(100, 100, 100), std=(60, 60, 60))
STATISTICS = {"release_vqvae": RELEASE, "release_vqvae_gradient": RELEASE, "release_vqvae2": RELEASE}
NAMES = ["release_vqvae", "release_vqvae_gradient", "release_vqvae2", "rosinality", "zalandoresearch"]


@pytest.mark.parametrize("name", NAMES)
def test_reconstructions_equal_pytorch_s(name, tmp_path):
    with np.load(MODELS / "outputs.npz") as file:
        outputs = dict(file)
    run = kvae.from_torch(MODELS / f"{name}.safetensors", size=32, **STATISTICS.get(name, {}))
    outcome = jax.jit(run.model.apply)(run.variables, outputs["images"])
    np.testing.assert_allclose(outcome.images, outputs[name], atol=1e-4)
    assert all(len(np.unique(out.codes)) > 8 for out in outcome.quantized.values())
    assert run.reconstruct(outputs["images"]).shape == (2, 32, 32, 3)
    run.save_pretrained(tmp_path)
    other = kvae.from_pretrained(tmp_path)
    np.testing.assert_array_equal(other.reconstruct(outputs["images"]), run.reconstruct(outputs["images"]))


def test_quantizer_fields_override_the_weights():
    path = MODELS / "release_vqvae.safetensors"
    run = kvae.from_torch(path, **RELEASE)
    assert run.codebooks["codebook"].shape == (16, 4)
    fields = dict(grid_shape=(2, 8), neighborhood="exponential", shrink_step=0.2)
    run = kvae.from_torch(path, **RELEASE, quantizer=fields)
    assert run.codebooks["codebook"].shape == (2, 8, 4)
    assert run.config["model"]["quantizer"] | fields == run.config["model"]["quantizer"]
    with pytest.raises(InputError, match="neighborhood is 'hrad'"):
        kvae.from_torch(path, **RELEASE, quantizer=dict(neighborhood="hrad"))


def test_release_arguments_become_fields():
    """A grid of 512 codes with two axes is 16 x 32, and "gaussian" is exponential in the distance."""
    assert [grid_shape(512, axes) for axes in (1, 2, 3)] == [(512,), (16, 32), (8, 8, 8)]
    arguments = {
        "grid_dim": 2, "neihborhood": "gaussian", "count_unit": 0.1, "decay": 0.99, "commitment_cost": 0.25,
        "magic_counter_init": 1.0, "quantizer": "hardsom_noupdate_zero", "som_cost": 1.0,
    }  # fmt: skip
    fields = quantizer_fields({f"vq_vae.{name}": value for name, value in arguments.items()}, 512)
    assert (fields["grid_shape"], fields["neighborhood"], fields["update_empty"]) == ((16, 32), "exponential", False)
    assert quantizer_fields({}, 512) == {}


def test_from_torch_rejects_unknown_files(tmp_path):
    def saved(name, **changes):
        arrays = {**safetensors.numpy.load_file(MODELS / "release_vqvae.safetensors"), **changes}
        path = tmp_path / f"{name}.safetensors"
        safetensors.numpy.save_file({key: value for key, value in arrays.items() if value is not None}, path)
        return path

    flat = np.zeros(3, np.float32)
    resnet = tmp_path / "resnet.safetensors"
    safetensors.numpy.save_file({"fc.weight": flat}, resnet)
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(saved("intact").read_bytes()[:5_000])
    pickled = tmp_path / "model.pt"
    pickled.write_bytes(b"a")
    for path, message in [
        (
            resnet,
            r"has an unknown architecture with fc\.weight, \.\.\.; help\(kvae\.from_torch\) lists those supported",
        ),
        (truncated, "is not a readable safetensors file"),
        (tmp_path / "none.safetensors", "there is no such file"),
        (saved("more", head=flat), "has an unknown architecture: head is not part of a vqvae"),
        (saved("less", **{"_decoder._conv_1.weight": None}), "or is incomplete: it lacks _decoder._conv_1.weight"),
        (saved("flat", **{"_pre_vq_conv.weight": flat}), r"_pre_vq_conv\.weight has shape \[3\]"),
        (saved("other", **{"_decoder._conv_1.weight": np.zeros((8, 5, 3, 3), np.float32)}), "this model expects"),
        (saved("quantiser", **{"_vq_vae._w": None, "_vq_vae.codes": flat}), "the arrays of its quantiser _vq_vae are "),
        (pickled, "needs PyTorch, which is not installed|is not a readable file of PyTorch weights"),
    ]:
        with pytest.raises(InputError, match=message) as error:
            kvae.from_torch(path, **RELEASE)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"does not contain the mean of its images; pass mean=\(r, g, b\)"):
        kvae.from_torch(saved("intact"))
