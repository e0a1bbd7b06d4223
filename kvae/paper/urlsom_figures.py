"""Draws figures of the URL-SOM paper (Kermiche, 2021)."""

import json
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from kvae.core.errors import InputError
from kvae.models.urlsom.losses import collapse_loss, winner_take_all_loss
from kvae.plots import urlsom as plots
from kvae.runs.seeds import INCIDENTAL_FIELDS, Seed, read_seeds
from kvae.training.workdir.journal import is_finished

SELECTIVITY = {"training set": "neural_selectivity_train", "held out": "neural_selectivity_transferred"}
"""Maps labels to the metrics that they show."""


def two_neuron_figure(stem: str) -> Iterator[str]:
    """Draws URL-SOM's Figure 3: the sum of both losses for two neurons whose softmax inputs are (x, 0) or (0, x)."""
    x, wins = np.linspace(0, 8, 81), np.arange(101)
    probabilities = jnp.asarray(np.stack([np.ones_like(x), np.exp(-x)], axis=-1) / (1 + np.exp(-x))[:, None])

    def loss(p, wins):
        # The first neuron wins this many samples of a batch of 100.
        batch = jnp.where(jnp.arange(100)[:, None] < wins, p, p[::-1])
        return winner_take_all_loss(batch) + collapse_loss(batch)

    surface = jax.vmap(jax.vmap(loss, (None, 0)), (0, None))(probabilities, jnp.asarray(wins))
    title = "Two neurons: the loss is lowest if each sample has one winner and each neuron wins half of the samples"
    plots.draw_collapse_surface(f"{stem}.png", x, wins / 100, surface, title)
    yield f"{stem}.png"


def selectivity_figure(folders: list[str], stem: str) -> Iterator[str]:
    """Draws URL-SOM's Figure 7: neural selectivity of finished runs that differ in sigma."""
    seeds = _seeds_with_one_config(folders)
    rows: dict[float, dict[int, dict]] = {}
    for seed in seeds:
        rows.setdefault(seed.config["model.sigma"], {})[seed.number] = seed.rows[-1]
    shared = sorted(set.intersection(*map(set, rows.values()))) if rows else []
    sigmas = sorted(rows)
    if len(sigmas) < 2 or not shared:
        raise InputError(
            "this figure needs finished runs of URL-SOM, on data with labels, with the same seeds and at least two "
            f"values of model.sigma; found {', '.join(map(str, sigmas)) or 'none'}"
        )
    values = {
        label: [[rows[sigma][number][f"valid/{name}"] for sigma in sigmas] for number in shared]
        for label, name in SELECTIVITY.items()
    }
    title = f"URL-SOM on {seeds[0].config['dataset.name']}: neural selectivity by filter width sigma"
    plots.draw_selectivity_by_sigma(f"{stem}.png", sigmas, values, title)
    yield f"{stem}.png"


def _seeds_with_one_config(folders: list[str]) -> list[Seed]:
    """Returns the finished seeds with the most frequent config, ignoring sigma; lists the others on stderr."""
    by_config: dict[str, list[Seed]] = {}
    for seed in read_seeds(folders):
        if is_finished(seed.config, seed.rows) and f"valid/{SELECTIVITY['held out']}" in seed.rows[-1]:
            common = {k: v for k, v in seed.config.items() if k not in {*INCIDENTAL_FIELDS, "model.sigma"}}
            by_config.setdefault(json.dumps(common, sort_keys=True), []).append(seed)
    usual = max(by_config.values(), key=len, default=[])
    for seeds in by_config.values():
        for seed in seeds if seeds is not usual else ():
            print(f"kvae: left out: {seed.name}: its config differs from the rest", file=sys.stderr)
    return usual
