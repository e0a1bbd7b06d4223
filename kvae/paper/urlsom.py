"""Figures of the paper of URL-SOM (Kermiche, 2021)."""

import json
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from kvae.core.errors import InputError
from kvae.models.urlsom.losses import collapse_loss, winner_take_all_loss
from kvae.plots import urlsom as figures
from kvae.runs.seeds import INCIDENTAL_FIELDS, read_seeds
from kvae.training.workdir.journal import is_finished


def loss_of_two_neurons(stem: str) -> Iterator[str]:
    """URL-SOM's Figure 3: winner-take-all plus collapse loss of two neurons, whose softmax reads (x, 0) or (0, x)."""
    x, wins = np.linspace(0, 8, 81), np.arange(101)
    one = jnp.asarray(np.stack([np.ones_like(x), np.exp(-x)], axis=-1) / (1 + np.exp(-x))[:, None])

    def loss(p, wins):
        # Of a batch of a hundred, of which the first neuron wins so many.
        batch = jnp.where(jnp.arange(100)[:, None] < wins, p, p[::-1])
        return winner_take_all_loss(batch) + collapse_loss(batch)

    surface = jax.vmap(jax.vmap(loss, (None, 0)), (0, None))(one, jnp.asarray(wins))
    title = "Two neurons: the loss is lowest where each sample has one winner, and each neuron half of the samples"
    figures.collapse_surface(f"{stem}.png", x, wins / 100, surface, title)
    yield f"{stem}.png"


def selectivity_by_sigma(folders: list[str], stem: str) -> Iterator[str]:
    """The effect of sigma (URL-SOM's Figure 7): neural selectivity of finished runs that differ in it."""
    metrics = {"training set": "neural_selectivity_train", "held out": "neural_selectivity_transferred"}
    by_config = {}
    for seed in read_seeds(folders):
        if is_finished(seed.config, seed.rows) and f"valid/{metrics['held out']}" in seed.rows[-1]:
            common = {k: v for k, v in seed.config.items() if k not in {*INCIDENTAL_FIELDS, "model.sigma"}}
            by_config.setdefault(json.dumps(common, sort_keys=True), []).append(seed)
    seeds = max(by_config.values(), key=len, default=[])
    for others in by_config.values():
        for seed in others if others is not seeds else ():
            print(f"kvae: left out: {seed.name}: another config than the rest", file=sys.stderr)
    found = {}
    for seed in seeds:
        found.setdefault(seed.config["model.sigma"], {})[seed.number] = seed.rows[-1]
    shared = sorted(set.intersection(*map(set, found.values()))) if found else []
    if len(found) < 2 or not shared:
        raise InputError(
            "this figure needs finished runs of URL-SOM, on data with labels, with the same seeds and at least two "
            f"values of model.sigma; there are {', '.join(map(str, sorted(found))) or 'none'}"
        )
    sigmas = sorted(found)
    values = {
        label: [[found[sigma][number][f"valid/{name}"] for sigma in sigmas] for number in shared]
        for label, name in metrics.items()
    }
    title = (
        f"URL-SOM on {seeds[0].config['dataset.name']}: how well neurons tell classes apart, by the width of the filter"
    )
    figures.neural_selectivity_by_sigma(f"{stem}.png", sigmas, values, title)
    yield f"{stem}.png"
