"""`python -m kvae.sample` and `Run.sample`: images from a prior and a tokeniser."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import kvae
from kvae import sample
from kvae.core import program
from kvae.data import ArrayExamples, Codebook, Dataset
from kvae.models import build, validate_model_section
from kvae.models.priors.model import Prior
from kvae.runs import Run
from refusals import refusal

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def tokenizer(trained_run):
    return kvae.load(str(trained_run()))


@pytest.fixture(scope="module")
def prior(tokenizer, tmp_path_factory):
    """A prior that was initialised, but not trained, in a folder of its own."""
    codewords = tokenizer.codebooks["codebook"].reshape(32, -1)
    examples = ArrayExamples({"codebook": np.zeros((2, 8, 8), np.int32), "label": np.zeros(2, np.int32)})
    codebooks = {"codebook": Codebook((8, 8), 32, (4, 8), "plane", codewords)}
    dataset = Dataset(examples, {"validation": examples}, ("cat", "dog"), codebooks)
    section = {"name": "prior", "width": 8, "depth": 1, "num_heads": 2, "conditional": True}
    section = validate_model_section(section)
    section |= Prior.fields_from_data(section, dataset)
    model = build(section)
    init = jax.jit(
        lambda: model.init(KEY, {"codebook": jnp.zeros((1, 8, 8), int)}, jnp.zeros(1, int), method="log_likelihood")
    )
    variables = jax.device_get({**init(), **model.variables_from_data(dataset)})
    folder = tmp_path_factory.mktemp("prior") / "shared"
    Run(str(folder), {**tokenizer.config, "model": section}, 4, model, variables).save_pretrained(folder)
    return kvae.from_pretrained(folder)


def start(prior, tokenizer, out, *more):
    arguments = [prior.workdir, f"--tokenizer={tokenizer.workdir}", f"--out={out}", "--n=6", "--batch-size=4", *more]
    return program.run(sample.main, list(map(str, arguments)))


@pytest.fixture(scope="module")
def samples(prior, tokenizer, tmp_path_factory):
    out = tmp_path_factory.mktemp("samples") / "out"
    assert start(prior, tokenizer, out) == 0
    return out


def test_program_writes_the_samples_of_the_run(prior, tokenizer, samples):
    images = prior.sample(4, tokenizer=tokenizer, key=KEY)
    for number, image in enumerate(images):
        np.testing.assert_array_equal(np.asarray(Image.open(samples / f"{number:05}.png")), image)
    assert len(list(samples.glob("0*.png"))) == 6
    sheet = np.asarray(Image.open(samples / "sheet.png"))
    assert sheet.shape == (2 * 34, 3 * 34, 3)
    np.testing.assert_array_equal(sheet[:32, 34:66], images[1])


def test_interrupted_program_resumes(prior, tokenizer, samples):
    before = {path.name: path.read_bytes() for path in samples.iterdir()}
    for name in ("00001.png", "00005.png", "sheet.png"):
        (samples / name).unlink()
    assert start(prior, tokenizer, samples) == 0
    assert {path.name: path.read_bytes() for path in samples.iterdir()} == before


def test_classes_are_drawn_or_chosen(prior):
    cat, dog, drawn = (prior.sample_codes(4, key=KEY, label=label)["codebook"] for label in ("cat", 1, None))
    assert (cat != dog).any()
    for image, one, other in zip(drawn, cat, dog, strict=True):
        assert np.array_equal(image, one) or np.array_equal(image, other)
    mixed = prior.sample_codes(4, key=KEY, label=["dog", "cat", "dog", "cat"])["codebook"]
    np.testing.assert_array_equal(mixed[1::2], cat[1::2])


def test_unmasked_codes_are_kept(prior):
    codes, mask = {"codebook": np.full((1, 8, 8), 7)}, {"codebook": np.arange(8) + np.zeros((8, 1)) > 3}
    sampled = prior.sample_codes(4, key=KEY, label="cat", codes=codes, mask=mask)["codebook"]
    assert (sampled[:, :, :4] == 7).all()
    assert (sampled[:, :, 4:] != 7).mean() > 0.5
    assert "must be from 0 to 31" in refusal(
        prior.sample_codes, 4, key=KEY, codes={"codebook": codes["codebook"] + 30}, mask=mask
    )
    assert "codes and mask must be given together" in refusal(prior.sample_codes, 4, key=KEY, mask=mask)
    assert "mask of 'codebook' is int64" in refusal(prior.sample_codes, 4, key=KEY, codes=codes, mask=codes)
    assert "mask lack" in refusal(prior.sample_codes, 4, key=KEY, codes=codes, mask={})


def test_mistakes_are_one_line(prior, tokenizer, samples, tmp_path, capsys):
    other = Run("other", tokenizer.config, 4, tokenizer.model, jax.tree.map(lambda leaf: leaf + 1, tokenizer.variables))
    assert "has another codebook 'codebook'" in refusal(prior.sample, 4, tokenizer=other, key=KEY)
    assert "is a run of VQVAE, which is not a prior" in refusal(tokenizer.sample_codes, 4, key=KEY)
    assert "key is 0; it must be a JAX random key" in refusal(prior.sample_codes, 4, key=0)
    assert "temperature is -1.0" in refusal(prior.sample_codes, 4, key=KEY, temperature=-1.0)
    assert "label has 1 entries" in refusal(prior.sample_codes, 4, key=KEY, label=["cat"])
    for arguments, message in [
        ((prior, tokenizer, samples, "--temperature=0.5"), "made with other options: temperature 1.0 -> 0.5"),
        ((prior, tokenizer, tmp_path / "out", "--class=cta"), "label is 'cta'; did you mean 'cat'?"),
        ((prior, tokenizer, tmp_path / "out", "--top-p=2"), "it must be a number from 0 to 1"),
        ((tokenizer, tokenizer, tmp_path / "out"), "which is not a prior"),
        ((prior, tokenizer, prior.workdir), "holds other files"),
    ]:
        assert start(*arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("kvae: ") == 1
        assert not (tmp_path / "out").exists()
    assert json.loads((samples / "samples.json").read_text())["seed"] == 0
