"""The comparison of samples with real images."""

import numpy as np
import pytest

import kvae
from kvae.data import ArrayExamples, Dataset
from kvae.runs import Run, generation, sample_quality
from kvae.runs.sample_quality import compare, frechet_distance
from refusals import refusal

RNG = np.random.default_rng(0)


def test_distance_between_gaussians_has_its_closed_form():
    """Diagonal covariances: |m - m'|^2 + sum_i (s_i - s'_i)^2."""
    exact = RNG.normal(size=(5_000, 3))
    exact = (exact - exact.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(exact, rowvar=False))).T
    one, other = exact * [1.0, 2.0, 0.5] + [1.0, 0.0, 2.0], exact * [3.0, 2.0, 0.1]
    assert frechet_distance(one, other) == pytest.approx(5 + 4 + 0.16, rel=1e-9)
    assert frechet_distance(other, one) == pytest.approx(5 + 4 + 0.16, rel=1e-9)
    rotation = np.linalg.qr(RNG.normal(size=(3, 3)))[0]
    assert frechet_distance(one @ rotation, other @ rotation) == pytest.approx(5 + 4 + 0.16, rel=1e-9)


def test_distance_is_zero_for_equal_sets_of_low_rank():
    features = RNG.normal(size=(20, 4)) @ RNG.normal(size=(4, 64))
    assert frechet_distance(features, features[::-1]) == pytest.approx(0, abs=1e-3)


class Tokenizer:
    """Decodes code 0 to a red image, 1 to a green one and 2 to a blue one, with noise."""

    workdir, config = "runs/tokens", {"dataset": {"name": "colours"}}

    def decode(self, codes):
        colours = 200.0 * np.eye(3)[codes["codebook"][:, :1, :1]]
        noise = np.random.default_rng(1).normal(0, 5, (len(colours), 8, 8, 3))
        return (20 + colours + noise).astype(np.uint8)

    def reconstruct(self, images):
        return images


@pytest.fixture
def prior(monkeypatch):
    """Images of three colours; the prior samples the class that it is asked for."""

    def examples(count):
        labels = np.arange(count) % 3
        return ArrayExamples({"image": Tokenizer().decode({"codebook": labels[:, None, None]}), "label": labels})

    dataset = Dataset(examples(300), {"validation": examples(90)}, ("red", "green", "blue"))
    monkeypatch.setattr(sample_quality, "load_data", lambda config: (dataset, config))

    def sample_codes(run, keys, label, shift=0):
        return {"codebook": (np.array(label)[:, None, None] + shift) % 3}

    monkeypatch.setattr(generation, "sample_codes", sample_codes)
    return Run("runs/prior", {"model": {"label_names": ("red", "green", "blue")}}, 4, None, {})


def test_samples_of_the_right_class_are_as_close_as_real_images(prior):
    real, reconstructed, samples = compare(prior, Tokenizer())
    assert [row.count for row in (real, reconstructed, samples)] == [90] * 3
    assert (real.in_class, samples.in_class) == (1.0, 1.0)
    assert (real.in_class, real.distance) == (reconstructed.in_class, reconstructed.distance)
    assert samples.distance == pytest.approx(real.distance, rel=0.5)


def test_samples_of_the_wrong_class_are_found(prior):
    assert compare(prior, Tokenizer(), shift=1)[2].in_class == 0


def test_data_without_labels_are_refused(trained_run):
    run = kvae.load(str(trained_run()))
    assert "the data set photos" in refusal(compare, run, run)
    assert "has no labels, which this comparison needs" in refusal(compare, run, run)
