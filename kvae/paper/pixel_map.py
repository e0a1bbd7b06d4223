"""The map that URL-SOM has to beat: Kohonen's batch map (Appendix A of Irie et al., 2023) on the pixels themselves.

    python -m kvae.paper.pixel_map --config=configs/digits_urlsom.py

The map has the `model.grid_shape` of the config, and sees the same images, without augmentation. Printed for three
seeds: neural selectivity on the training set, held out (validation images, judged by the labels that neurons have from
training), and the neurons that win no training image.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from kvae import data, main
from kvae.core import program
from kvae.core.errors import InputError
from kvae.data.dataset import Examples
from kvae.models.urlsom import losses as selectivity
from kvae.som import SOM
from kvae.training.config.sections import load_data, validate_config

EPOCHS = 60
INITIAL_WIDTH, FINAL_WIDTH = 4.0, 0.4
"""In neurons: of six pairs the best on held-out digits, over seeds 3 to 10."""
SEEDS = (0, 1, 2)


def pixels_and_labels(examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    """All images as rows, float32 [n, h * w * 3] from 0 to 1, and their labels int32 [n]."""
    examples = [examples[i] for i in range(len(examples))]
    if "label" not in examples[0]:
        raise InputError("the data set has no labels, by which a map could be judged")
    pixels = np.stack([example["image"].ravel() for example in examples]).astype(np.float32) / 255
    return pixels, np.stack([example["label"] for example in examples])


def win_table(winners: jax.Array, labels: np.ndarray, neurons: int, classes: int) -> jax.Array:
    """How many samples of each class each neuron won, float32 [neurons, classes]."""
    return jnp.zeros((neurons, classes)).at[winners, labels].add(1)


def batch_map(dataset: data.Dataset, grid_shape: tuple[int, ...], seed: int) -> dict[str, float]:
    """Trains a batch map on the pixels of a data set, and judges it.

    Returns:
      `neural_selectivity_train`, `neural_selectivity_transferred` and `dead_neurons_train`, as URL-SOM has them.
    """
    pixels, labels = pixels_and_labels(dataset.train)
    widths = {"initial_width": INITIAL_WIDTH, "final_width": FINAL_WIDTH}
    som = SOM(grid_shape, n_epochs=EPOCHS, **widths, init="random", random_state=seed).fit(pixels)
    shape = som.grid_.size, len(dataset.label_names)
    table = win_table(som.labels_, labels, *shape)
    others, other_labels = map(np.concatenate, zip(*map(pixels_and_labels, dataset.validation.values()), strict=True))
    held_out = win_table(som.predict(others), other_labels, *shape)
    return {
        "neural_selectivity_train": float(selectivity.neural_selectivity(table)),
        "neural_selectivity_transferred": float(selectivity.neural_selectivity(table, held_out)),
        "dead_neurons_train": selectivity.dead_neurons(table.sum(axis=-1)),
    }


def run(argv: list[str]) -> int:
    """Prints a line for each seed, and the mean and standard deviation over them; returns the exit status."""
    config = validate_config(main.parse(argv)[0])
    dataset, _ = load_data(config)
    rows = [batch_map(dataset, config["model"]["grid_shape"], seed) for seed in SEEDS]
    for name in rows[0]:
        values = [row[name] for row in rows]
        listed = ", ".join(f"{value:.4g}" for value in values)
        print(f"{name}: {np.mean(values):.4g} +- {np.std(values, ddof=1):.2g} ({listed})")
    return 0


if __name__ == "__main__":
    sys.exit(program.run(run, sys.argv[1:]))
