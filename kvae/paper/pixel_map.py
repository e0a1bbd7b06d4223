"""The baseline for URL-SOM: Kohonen's batch map (Appendix A of Irie et al., 2023), trained on the pixels.

    python -m kvae.paper.pixel_map --config=configs/digits_urlsom.py

The map has the config's `model.grid_shape` and is trained on the same images, without augmentation. The program trains
three seeds. It prints neural selectivity on the training and the validation set, with each neuron labelled by the
training set, and the number of neurons that win no training image.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from kvae import data
from kvae import main as training
from kvae.core import program
from kvae.core.errors import InputError
from kvae.data.dataset import Examples
from kvae.models.urlsom import losses as selectivity
from kvae.som import SOM
from kvae.training.config.sections import load_data, validate_config

MAP_EPOCHS = 60
MAP_WIDTHS = {"initial_width": 4.0, "final_width": 0.4}
"""Widths in nodes; the best of six pairs on held-out digits, over seeds 3 to 10."""
SEEDS = (0, 1, 2)


def pixels_and_labels(examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    """Returns all images as rows, float32 [n, h * w * 3] from 0 to 1, and their labels, int32 [n].

    Raises:
      InputError: The examples have no labels.
    """
    examples = [examples[i] for i in range(len(examples))]
    if not examples or "label" not in examples[0]:
        raise InputError(
            "the data set has no labels, which neural selectivity needs; use one with labels, such as digits"
        )
    pixels = np.stack([example["image"].ravel() for example in examples]).astype(np.float32) / 255
    return pixels, np.stack([example["label"] for example in examples])


def win_table(winners: jax.Array, labels: np.ndarray, neurons: int, classes: int) -> jax.Array:
    """Returns the number of samples of each class that each neuron won, float32 [neurons, classes].

    Args:
      winners: The winning neuron of each sample, int [n].
      labels: The class of each sample, int [n].
      neurons: Number of neurons.
      classes: Number of classes.
    """
    return jnp.zeros((neurons, classes)).at[winners, labels].add(1)


def batch_map(dataset: data.Dataset, grid_shape: tuple[int, ...], seed: int) -> dict[str, float]:
    """Trains a batch map on the pixels of a data set and measures it.

    Args:
      dataset: Images with labels.
      grid_shape: Shape of the map.
      seed: Seed of the initial codewords.

    Returns:
      `neural_selectivity_train`, `neural_selectivity_transferred` and `dead_neurons_train`, as for URL-SOM.
    """
    pixels, labels = pixels_and_labels(dataset.train)
    som = SOM(grid_shape, n_epochs=MAP_EPOCHS, **MAP_WIDTHS, init="random", random_state=seed).fit(pixels)
    shape = som.grid_.size, max(len(dataset.label_names), int(labels.max()) + 1)
    table = win_table(som.labels_, labels, *shape)
    others, other_labels = map(np.concatenate, zip(*map(pixels_and_labels, dataset.validation.values()), strict=True))
    held_out = win_table(som.predict(others), other_labels, *shape)
    return {
        "neural_selectivity_train": float(selectivity.neural_selectivity(table)),
        "neural_selectivity_transferred": float(selectivity.neural_selectivity(table, held_out)),
        "dead_neurons_train": selectivity.dead_neurons(table.sum(axis=-1)),
    }


def main(argv: list[str]) -> int:
    """Prints the mean, standard deviation and values of each measure over seeds; returns the exit status."""
    config = validate_config(training.parse(argv)[0])
    if "grid_shape" not in config["model"]:
        raise InputError(
            f"model.name is {config['model']['name']!r}, which has no grid_shape; use a config of a URL-SOM"
        )
    dataset, _ = load_data(config)
    rows = [batch_map(dataset, config["model"]["grid_shape"], seed) for seed in SEEDS]
    for name in rows[0]:
        values = [row[name] for row in rows]
        all_values = ", ".join(f"{value:.4g}" for value in values)
        print(f"{name}: {np.mean(values):.4g} +- {np.std(values, ddof=1):.2g} (seeds: {all_values})")
    return 0


if __name__ == "__main__":
    sys.exit(program.run(main, sys.argv[1:]))
