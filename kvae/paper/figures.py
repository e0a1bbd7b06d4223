"""Draws the papers' figures from finished runs, as PNG files.

    python launch/sweep.py --table=2 --dataset=photos
    python -m kvae.paper --figure=3 runs/paper/photos --out=figures

RUNS are run folders or folders that contain them. Each figure uses the runs of the settings that it compares (see
kvae/paper/experiments.py). Figures that show images use the first seed.

Figures 1 to 9 are numbered as in Irie et al. (2023). Figures 4 and 5 draw the neighbourhoods and need no runs.
bit_errors, fewer_bits and compression show uses of topological order; frontier shows its cost; perturbation shows the
PSNR after codes are moved; robustness shows the runs of Table 3 by step. priors (of a folder RUNS/DATASET_priors) shows
what an address is worth to a prior. urlsom_3 (needs no runs) and urlsom_7 are figures of the URL-SOM paper.
"""

import functools
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from kvae import measures, topology
from kvae.core import program
from kvae.core.errors import InputError, wrap_write_errors
from kvae.core.fields import Count
from kvae.models.autoencoders import inspection
from kvae.models.codebook_views import metric_suffix, sums_by_codebook
from kvae.paper import order, prior_arms, urlsom_figures
from kvae.paper.settings import Table, collect, load_experiments, measures_of, open_seed, setting_of
from kvae.plots import paper as plots
from kvae.plots.codebooks import draw_codebook_map
from kvae.plots.curves import draw_perturbation_curve
from kvae.plots.reconstructions import draw_offset_reconstructions
from kvae.runs.run import Run
from kvae.runs.seeds import Seed, mean_and_std, read_seeds, series, until
from kvae.training.config.sections import load_data
from kvae.training.evaluate import Evaluator, samples
from kvae.training.parallel.devices import Replicas, make_mesh, select_replica

FIRST_STEPS = 1_500
"""The last step shown in Figure 1, as in the authors' script."""

MOVES = (-3, -2, -1, 0, 1, 2, 3)
"""Offsets of all codes, in nodes along each axis of the grid."""

SAMPLE_COUNT = 32
"""Number of validation images."""

EXAMPLES = (0, SAMPLE_COUNT // 2)
"""The validation images of Figure 3; Figures 8 and 9 show one each."""

MAP, EMA = "hard", "ema"


def seeds_of(table: Table, setting: str) -> list[Seed]:
    """Returns the finished seeds of a setting.

    Raises:
      InputError: The setting has no finished run.
    """
    if not table.seeds[setting]:
        raise InputError(f"there is no finished run of the setting {setting!r} on {table.dataset}")
    return table.seeds[setting]


def validation_images(run: Run) -> np.ndarray:
    """Returns `SAMPLE_COUNT` images of the run's validation sets, uint8 [n, h, w, 3]."""
    dataset, _ = load_data(run.config)
    return samples(dataset.validation, SAMPLE_COUNT)["image"]


def count_codes(run: Run) -> dict[str, np.ndarray]:
    """Returns how often each code is used on the validation sets: {codebook: [K]}."""
    dataset, _ = load_data(run.config)
    replicas = Replicas(1, make_mesh(1, jax.local_devices()[:1]))
    evaluator = Evaluator(run.model, replicas, dataset, run.config["batch_size"])
    variables = jax.tree.map(lambda leaf: leaf[None], run.variables)
    sums = select_replica(evaluator.evaluate([variables], np.ones(1, bool)).sums, 0)
    return {name: sums["counts"] for name, sums in sums_by_codebook(sums["codebooks"]).items()}


def initial_counts_figure(table: Table, stem: str) -> Iterator[str]:
    """Draws Figure 1: the training loss of every seed of EMA-VQ, for initial counts of 0 and 1."""
    losses = {
        f"initial count {count}": series(seeds_of(table, setting), "train/reconstruction_loss", FIRST_STEPS)
        for count, setting in ((0, "ema_n0"), (1, EMA))
    }
    title = f"EMA-VQ on {table.dataset}: the first steps, by initial count"
    plots.draw_initialization(f"{stem}.png", losses, title, "training reconstruction loss")
    yield f"{stem}.png"


def codebook_map_figures(table: Table, stem: str) -> Iterator[str]:
    """Draws Figure 2 or, for models with two codebooks, Figure 7: the image that each code decodes to."""
    for setting, method in ((EMA, "EMA-VQ (no map)"), (MAP, "The Kohonen map")):
        run = open_seed(seeds_of(table, setting)[0])
        counts = count_codes(run)
        for name, codewords in run.codebooks.items():
            shape = codewords.shape[:-1]
            others = [other for other in run.codebooks if other != name]
            # With two codebooks, every position of the other level has the code at 1/4 or at 3/4 of its grid.
            for quarter in (1, 3) if others else (0,):
                nodes = {other: [side * quarter // 4 for side in run.codebooks[other].shape[:-1]] for other in others}
                held = {
                    other: int(np.ravel_multi_index(nodes[other], run.codebooks[other].shape[:-1])) for other in others
                }
                images = inspection.constant_code_images(run.model, run.variables, name, held)
                images = images.reshape(*shape, *images.shape[1:])
                fixed = "".join(f", {other} level held at {tuple(nodes[other])}" for other in others)
                level = f" of the {name} level" if others else ""
                path = f"{stem}_{setting}{metric_suffix(name)}{f'_held_{quarter}' if others else ''}.png"
                title = f"{method} on {table.dataset}: what each code{level} decodes to{fixed} (step {run.step})"
                draw_codebook_map(path, images, title, counts[name].reshape(shape))
                yield path


def moved_codes_figure(table: Table, stem: str, image: int | None = None) -> Iterator[str]:
    """Draws images after their codes are moved: Figure 3 or, with `image`, Figure 8 or 9, one level at a time."""
    runs = {"map": open_seed(seeds_of(table, MAP)[0]), "EMA-VQ": open_seed(seeds_of(table, EMA)[0])}
    levels = list(runs["map"].codebooks)
    if image is not None and len(levels) < 2:
        raise InputError(f"this figure needs models with two codebooks; the runs on {table.dataset} have one")
    images, rows = validation_images(runs["map"]), {}
    if image is None:
        parts = [(f"image {number}", i, None) for number, i in enumerate(EXAMPLES, 1)]
    else:
        parts = [(f"{level} level moved", image, [level]) for level in levels]
    for part, i, names in parts:
        for label, run in runs.items():
            moved = (
                inspection.shifted_reconstructions(run.model, run.variables, images[i : i + 1], offset, names)
                for offset in MOVES
            )
            rows[f"{label}, {part}"] = np.concatenate(list(moved))
    title = f"{table.dataset}: images after all codes are moved by an offset on the map (EMA-VQ: by code index)"
    draw_offset_reconstructions(f"{stem}.png", rows, MOVES, title)
    yield f"{stem}.png"


def neighborhood_figure(kernel: str, name: str, stem: str) -> Iterator[str]:
    """Draws Figure 4 or 5: a neighbourhood on a 4 x 6 grid at several steps, with tau 0.1."""
    grid_shape, winner = (4, 6), (2, 2)
    code = int(np.ravel_multi_index(winner, grid_shape))
    shape = topology.Neighborhood(topology.Plane(grid_shape), kernel, shrink_step=0.1)
    weights = {f"step {t}": np.asarray(topology.matrix(shape, t))[code].reshape(grid_shape) for t in (0, 10, 100)}
    title = f"{name} neighbourhood: weight of each node in the update of the winner, by step (tau 0.1)"
    plots.draw_neighborhoods(f"{stem}.png", weights, title, winner)
    yield f"{stem}.png"


def perplexity_figures(table: Table, stem: str) -> Iterator[str]:
    """Draws Figure 6: the perplexity of the codes of a training batch, by step."""
    labels = {EMA: "EMA-VQ", MAP: "map, hard", "exponential": "map, exponential"}
    seeds = {setting: seeds for setting, seeds in table.seeds.items() if seeds}
    if not seeds:
        raise InputError(f"there is no finished run of {', '.join(labels)} on {table.dataset}")
    first = next(iter(seeds.values()))[0]
    size = int(np.prod(first.config["model.quantizer.grid_shape"]))
    for level in ("", "_top", "_bottom"):
        if f"train/perplexity{level}" in first.rows[-1]:
            curves = {labels[setting]: series(seeds[setting], f"train/perplexity{level}") for setting in seeds}
            title = f"{table.dataset}: how evenly a batch uses the codes{level.replace('_', ' of level ')}"
            plots.draw_perplexity(f"{stem}{level}.png", curves, size, title)
            yield f"{stem}{level}.png"


def robustness_figure(table: Table, stem: str) -> Iterator[str]:
    """Draws the settings of Table 3 by step: the validation loss, and the number of codes in use."""
    seeds = {label: seeds_of(table, setting) for setting, label in table.labels.items()}
    metrics = {"validation reconstruction loss": "valid/reconstruction_loss", "codes in use": "valid/codes_used"}
    panels = {panel: {label: series(seeds[label], name) for label in seeds} for panel, name in metrics.items()}
    n = " to ".join(map(str, sorted({len(of_setting) for of_setting in seeds.values()})))
    plots.draw_pairs(f"{stem}.png", panels, f"{table.dataset}: EMA-VQ and the map by initialisation (n = {n} seeds)")
    yield f"{stem}.png"


def perturbation_figure(table: Table, stem: str) -> Iterator[str]:
    """Draws the PSNR after all codes are moved, by offset, for the map and EMA-VQ."""
    values = {}
    for setting, label in ((MAP, "map"), (EMA, "EMA-VQ (by code index)")):
        runs = [open_seed(seed) for seed in seeds_of(table, setting)]
        images = validation_images(runs[0])
        values[label] = [[psnr_after_move(run, images, offset) for offset in MOVES] for run in runs]
    draw_perturbation_curve(f"{stem}.png", MOVES, values, f"{table.dataset}: PSNR of images after all codes are moved")
    yield f"{stem}.png"


def psnr_after_move(run: Run, images: np.ndarray, offset: int) -> float:
    """Returns the mean PSNR, in dB, of reconstructions after all codes are moved by an offset.

    Args:
      run: A run of an autoencoder.
      images: Images, uint8 [n, h, w, 3].
      offset: Nodes to move along each axis.
    """
    moved = inspection.shifted_reconstructions(run.model, run.variables, images, offset)
    return float(np.mean(measures.psnr(images, moved)))


def frontier_figure(table: Table, stem: str) -> Iterator[str]:
    """Draws loss against topographic error and against PSNR after moves, one point per neighbourhood schedule."""
    points = []
    for setting, label in table.labels.items():
        rows = [measures_of(seed) for seed in table.seeds[setting]]
        if setting == EMA or not rows:
            continue
        point = {"label": label, "paper": setting == MAP}
        # The first topographic error counts diagonal neighbours, as the tables do.
        error = next((name for name in rows[0] if name.startswith("topographic_error")), "")
        for name, key in (("loss", "loss"), ("topographic_error", error), ("psnr", "perturbation_psnr_1")):
            if key in rows[0]:
                mean, std = mean_and_std([row[key] for row in rows])
                point |= {name: mean} | ({} if std is None else {f"{name}_std": std})
        points.append(point)
    counts = sorted({len(seeds) for setting, seeds in table.seeds.items() if setting != EMA and seeds})
    seed_counts = " to ".join(map(str, counts[:: max(1, len(counts) - 1)]))
    title = f"{table.dataset}: loss and order of the map by neighbourhood schedule ({seed_counts} seeds)"
    plots.draw_frontier(f"{stem}.png", points, title)
    yield f"{stem}.png"


FIGURES: dict[str, tuple[str | None, Callable[..., Iterator[str]]]] = {
    "1": ("1", initial_counts_figure),
    "2": ("2", codebook_map_figures),
    "3": ("2", moved_codes_figure),
    "4": (None, functools.partial(neighborhood_figure, "hard", "Hard")),
    "5": (None, functools.partial(neighborhood_figure, "gaussian", "Gaussian")),
    "6": ("2", perplexity_figures),
    "7": ("2", codebook_map_figures),
    "8": ("2", functools.partial(moved_codes_figure, image=EXAMPLES[0])),
    "9": ("2", functools.partial(moved_codes_figure, image=EXAMPLES[1])),
    "bit_errors": ("peers", order.bit_error_figure),
    "compression": ("peers", order.compression_figure),
    "fewer_bits": ("peers", order.pruning_figure),
    "frontier": ("schedules", frontier_figure),
    "perturbation": ("2", perturbation_figure),
    "priors": ("runs", prior_arms.figure),
    "robustness": ("3", robustness_figure),
    "urlsom_3": (None, urlsom_figures.two_neuron_figure),
    "urlsom_7": ("runs", urlsom_figures.selectivity_figure),
}
"""Maps each figure to the table whose settings it needs ("runs": any runs; None: no runs) and its drawing function."""


def draw_figure(
    name: str, folders: list[str], experiments: Mapping[str, Any], out: str, step: int | None = None
) -> Iterator[str]:
    """Draws a figure once for each data set of the runs, and yields the paths of the files.

    Args:
      name: A key of `FIGURES`.
      folders: Run folders, or folders that contain them.
      experiments: The contents of `kvae.paper.experiments`, by name.
      out: The folder to write to.
      step: Last step of each run to use; None for its last. Figures that open a run use its newest checkpoint.

    Raises:
      InputError: A setting that the figure needs has no run.
    """
    table_name, draw = FIGURES[name]
    pathlib.Path(out).mkdir(parents=True, exist_ok=True)
    if table_name in (None, "runs"):
        yield from draw(*([folders] if table_name else []), f"{out}/figure_{name}")
        return
    rows = experiments["TABLES"][table_name]["rows"]
    seeds = read_seeds(folders)
    seeds = seeds if step is None else [until(seed, step) for seed in seeds]
    datasets = {seed.config["dataset.name"]: None for seed in seeds if setting_of(seed.config, experiments) in rows}
    if not datasets:
        raise InputError(f"figure {name} needs runs of at least one of these settings: {', '.join(rows)}")
    for dataset in datasets:
        table = collect(seeds, experiments, table_name, dataset)
        for line in table.left_out:
            print(f"kvae: left out: {line}", file=sys.stderr)
        # A downloaded config.json may hold any name, so characters that could form a path are replaced.
        file_name = re.sub(r"[^\w.-]", "_", dataset)[:100]
        yield from draw(table, f"{out}/figure_{name}_{file_name}")


def main(argv: list[str]) -> int:
    """Runs the program with these arguments and returns its exit status."""
    parser = program.Parser("python -m kvae.paper", __doc__)
    parser.add_argument("runs", nargs="*", metavar="RUNS", help="run folders, or folders that contain them")
    parser.add_argument(
        "--figure", required=True, choices=FIGURES, help="the figure's number in the paper, or its name"
    )
    parser.add_argument("--out", metavar="DIR", default="figures", help="folder to write to (default: %(default)s)")
    parser.add_argument(
        "--experiments", metavar="FILE", help="settings and tables (default: kvae/paper/experiments.py)"
    )
    parser.add_argument("--step", type=program.number(Count), help="last step of each run to use (default: all)")
    options = parser.parse_args(argv)
    experiments = load_experiments(options.experiments)
    with wrap_write_errors(options.out):
        for path in draw_figure(options.figure, options.runs, experiments, options.out, options.step):
            print(path)
    return 0
