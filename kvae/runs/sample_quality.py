"""Compares samples of a prior with real images, in the features of a small classifier of the same data set."""

from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from kvae.core.errors import InputError, require_extra
from kvae.core.markdown import to_markdown
from kvae.data.dataset import Examples
from kvae.runs import generation
from kvae.runs.run import Run
from kvae.training.config.sections import load_data
from kvae.training.evaluate import samples

if TYPE_CHECKING:
    from sklearn.neural_network import MLPClassifier

TRAIN_IMAGES = 10_000
"""Maximum number of training images that the classifier learns from."""

COMPARED_IMAGES = 1_000
"""Maximum number of held-out images, and of samples, that are compared."""

SIDE = 32
"""Larger images are reduced to this side, in pixels, before they are classified."""

FEATURES = 128
"""Number of features: the hidden units of the classifier."""

BATCH = 64


class Quality(NamedTuple):
    """How images compare with the training images.

    Attributes:
      images: what they are.
      count: their number.
      in_class: share that the classifier assigns to the intended class; None if no class was intended.
      distance: Fréchet distance to the training images, in the features of the classifier.
    """

    images: str
    count: int
    in_class: float | None
    distance: float


def compare(prior: Run, tokenizer: Run, seed: int = 0, **options: object) -> list[Quality]:
    """Compares held-out images, their reconstructions and as many samples with the training images.

    The classifier, scikit-learn's MLP with one hidden layer, learns the labels of the tokeniser's training images. A
    conditional prior samples the classes of the held-out images. The held-out images themselves show the best that
    samples can reach. The distance is not an FID: its features come from this classifier, so it can only be compared
    within one data set, and only for equal numbers of images.

    Args:
      prior: the prior.
      tokenizer: the run that encoded its codes; its data set must have labels.
      seed: seed of the samples and of the classifier.
      **options: temperature, top_k and top_p, see `kvae.runs.generation.sample_codes`.

    Raises:
      InputError: the data set has no labels, or an option is invalid.
    """
    dataset, _ = load_data(tokenizer.config)
    if not dataset.label_names:
        name = tokenizer.config["dataset"]["name"]
        raise InputError(f"the data set {name} of {tokenizer.workdir} has no labels, which this comparison needs")
    images, labels = _read(dataset.train, TRAIN_IMAGES)
    held_out, classes = _read(next(iter(dataset.validation.values())), COMPARED_IMAGES)
    classifier = _classifier(images, labels, seed)
    is_conditional = bool(prior.config["model"].get("label_names"))
    keys = generation.split_key(jax.random.key(seed), range(len(held_out)))
    sampled = []
    for first in range(0, len(held_out), BATCH):
        part = slice(first, first + BATCH)
        wanted = classes[part].tolist() if is_conditional else None
        codes = generation.sample_codes(prior, keys[part], label=wanted, **options)
        sampled.append(tokenizer.decode(codes))
    sets = {
        "held-out images": (held_out, classes),
        "their reconstructions": (tokenizer.reconstruct(held_out), classes),
        "samples": (np.concatenate(sampled), classes if is_conditional else None),
    }
    reference = _features(classifier, images)
    return [
        Quality(
            name,
            len(found),
            None if wanted is None else float(np.mean(classifier.predict(_pixels(found)) == wanted)),
            frechet_distance(_features(classifier, found), reference),
        )
        for name, (found, wanted) in sets.items()
    ]


def markdown(rows: list[Quality]) -> str:
    """Returns the comparison as a table in Markdown."""
    cells = [["images", "n", "in the intended class", "Fréchet distance to the training images"]]
    for images, count, in_class, distance in rows:
        cells.append([images, f"{count:,}", "—" if in_class is None else f"{in_class:.1%}", f"{distance:.2f}"])
    return to_markdown(cells) + "\n"


def frechet_distance(features: np.ndarray, reference: np.ndarray) -> float:
    """Returns the squared Fréchet distance between Gaussians with the moments of two sets of features.

        |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2))                      (Dowson and Landau, 1982)

    Example:
      >>> import numpy as np
      >>> x = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
      >>> round(frechet_distance(x + [3.0, 4.0], x), 6)
      25.0

    Args:
      features, reference: float [n, d] and [m, d].
    """
    means = features.mean(axis=0) - reference.mean(axis=0)
    one, other = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (features, reference))
    # The eigenvalues of a product of two covariances are real and not negative, up to rounding.
    roots = np.sqrt(np.clip(np.linalg.eigvals(one @ other).real, 0, None))
    return float(means @ means + np.trace(one) + np.trace(other) - 2 * roots.sum())


def _read(examples: Examples, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns at most `most` evenly spaced examples: images uint8 [n, h, w, 3] and labels int [n]."""
    read = samples({"": examples}, min(most, len(examples)))
    return read["image"], read["label"]


def _classifier(images: np.ndarray, labels: np.ndarray, seed: int) -> "MLPClassifier":
    with require_extra("som"):
        from sklearn.neural_network import MLPClassifier
    # A tenth of the images tells when to stop, so that the features fit more than the training images.
    classifier = MLPClassifier((FEATURES,), early_stopping=True, n_iter_no_change=20, random_state=seed)
    return classifier.fit(_pixels(images), labels)


def _pixels(images: np.ndarray) -> np.ndarray:
    """Returns images as rows of at most SIDE x SIDE x 3 values from -1 to 1, float32 [n, values]."""
    if max(images.shape[1:3]) > SIDE:
        images = jax.image.resize(images.astype(np.float32), (len(images), SIDE, SIDE, 3), "linear")
    return np.asarray(images, np.float32).reshape(len(images), -1) / 127.5 - 1


def _features(classifier: "MLPClassifier", images: np.ndarray) -> np.ndarray:
    """Returns the hidden units of the classifier, float64 [n, FEATURES]."""
    hidden = _pixels(images) @ classifier.coefs_[0] + classifier.intercepts_[0]
    return np.maximum(hidden, 0).astype(np.float64)
