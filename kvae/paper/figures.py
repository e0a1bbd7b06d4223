"""The paper's figures from finished runs: `python -m kvae.paper --figure=3 RUNS… [--out=figures]`, as PNG.

RUNS are those of `kvae.report`; each figure takes the settings of `kvae.paper.experiments` that it compares, and the
first seed where it shows images. Figures 4 and 5 show the neighbourhoods themselves, and need no runs. `urlsom_3` and
`urlsom_7` are figures of the other paper: the loss of a map of two neurons (no runs), and the effect of sigma.
"""

import functools
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from kvae import measures, topology
from kvae.core import program
from kvae.core.errors import InputError, wrap_write_errors
from kvae.models.autoencoders import inspection
from kvae.models.codebooks import metric_suffix, sums_by_codebook
from kvae.paper import order, urlsom
from kvae.paper.settings import Table, collect, load_experiments, measures_of, open_seed, setting_of
from kvae.plots import maps
from kvae.plots import paper as paper_figures
from kvae.plots import run as figures
from kvae.runs.run import Run
from kvae.runs.seeds import Seed, mean_and_std, read_seeds, series
from kvae.training.config.sections import load_data
from kvae.training.evaluate import Evaluator, samples
from kvae.training.parallel.devices import Replicas, make_mesh, select_replica

FIRST_STEPS = 1_500
"""How far Figure 1 goes; the authors' script too plots the training loss of these steps."""

OFFSETS = (-3, -2, -1, 0, 1, 2, 3)
IMAGES = 32
SHOWN = (0, IMAGES // 2)
"""Of the images, those that Figure 3 shows; Figures 8 and 9 show one each."""

MAP, EMA = "hard", "ema"


def seeds_of(table: Table, setting: str) -> list[Seed]:
    """The seeds of a setting; InputError where there is none."""
    if not table.seeds[setting]:
        raise InputError(f"there is no finished run of the setting {setting!r} on {table.dataset}")
    return table.seeds[setting]


def validation_images(run: Run) -> np.ndarray:
    """Samples of the run's validation set, uint8 [IMAGES, h, w, 3]."""
    dataset, _ = load_data(run.config)
    return samples(dataset.validation, IMAGES)["image"]


def counts_of_codes(run: Run) -> dict[str, np.ndarray]:
    """By codebook, how often the validation set uses each code: [K]."""
    dataset, _ = load_data(run.config)
    replicas = Replicas(1, make_mesh(1, jax.local_devices()[:1]))
    evaluator = Evaluator(run.model, replicas, dataset, run.config["batch_size"])
    variables = jax.tree.map(lambda leaf: leaf[None], run.variables)
    sums = select_replica(evaluator.evaluate([variables], np.ones(1, bool)).sums, 0)
    return {name: sums["counts"] for name, sums in sums_by_codebook(sums["codebooks"]).items()}


def initialisation(table: Table, stem: str) -> Iterator[str]:
    """Figure 1: the loss of every seed of EMA-VQ, by the initial count of its codes."""
    losses = {
        f"counts start at {count}": series(seeds_of(table, setting), "train/reconstruction_loss", FIRST_STEPS)
        for count, setting in ((0, "ema_n0"), (1, EMA))
    }
    title = f"EMA-VQ on {table.dataset}: the first steps, by where the moving averages of the counts start"
    paper_figures.initialisation(f"{stem}.png", losses, title, "training reconstruction loss")
    yield f"{stem}.png"


def codebook_maps(table: Table, stem: str) -> Iterator[str]:
    """Figure 2, or, of models with two codebooks, Figure 7: what each code decodes to."""
    for setting, which in ((EMA, "EMA-VQ, without a map,"), (MAP, "The Kohonen map")):
        run = open_seed(seeds_of(table, setting)[0])
        counts = counts_of_codes(run)
        for name, codewords in run.codebooks.items():
            others = [other for other in run.codebooks if other != name]
            # With two codebooks one code of the other level is held: at a quarter of its grid, and at three quarters.
            for quarter in (1, 3) if others else (0,):
                place = {other: [side * quarter // 4 for side in run.codebooks[other].shape[:-1]] for other in others}
                held = {other: int(np.ravel_multi_index(place[other], codewords.shape[:-1])) for other in others}
                images = inspection.constant_code_images(run.model, run.variables, name, held)
                images = images.reshape(*codewords.shape[:-1], *images.shape[1:])
                words = "".join(f", {other} level held at {tuple(place[other])}" for other in others)
                level = f" of the {name} level" if others else ""
                path = f"{stem}_{setting}{metric_suffix(name)}{f'_held_{quarter}' if others else ''}.png"
                title = f"{which} on {table.dataset}: what each code{level} decodes to{words} (step {run.step})"
                maps.codebook_map(path, images, title, counts[name].reshape(codewords.shape[:-1]))
                yield path


def moved_codes(table: Table, stem: str, image: int | None = None) -> Iterator[str]:
    """Figure 3: images whose codes were moved, map above EMA-VQ. Of one image, level by level: Figures 8 and 9."""
    runs = {"map": open_seed(seeds_of(table, MAP)[0]), "EMA-VQ": open_seed(seeds_of(table, EMA)[0])}
    levels = list(runs["map"].codebooks)
    if image is not None and len(levels) < 2:
        raise InputError(f"this figure is of models with two codebooks; the runs on {table.dataset} have one")
    images, rows = validation_images(runs["map"]), {}
    parts = [(f"image {number}", i, None) for number, i in enumerate(SHOWN, 1)]
    for part, i, names in parts if image is None else [(f"{level} level moved", image, [level]) for level in levels]:
        for label, run in runs.items():
            moved = (
                inspection.shifted_reconstructions(run.model, run.variables, images[i : i + 1], offset, names)
                for offset in OFFSETS
            )
            rows[f"{label}, {part}"] = np.concatenate(list(moved))
    title = f"{table.dataset}: what an image becomes when its codes move on the map, or, in EMA-VQ, to other numbers"
    paper_figures.offset_reconstructions(f"{stem}.png", rows, OFFSETS, title)
    yield f"{stem}.png"


def neighborhood(kernel: str, name: str, stem: str) -> Iterator[str]:
    """Figures 4 and 5: a neighbourhood on a grid of 4 x 6 at several steps, for tau 0.1."""
    grid_shape, winner = (4, 6), (2, 2)
    code = int(np.ravel_multi_index(winner, grid_shape))
    shape = topology.Neighborhood(topology.Plane(grid_shape), kernel, shrink_step=0.1)
    weights = {f"step {t}": np.asarray(topology.matrix(shape, t))[code].reshape(grid_shape) for t in (0, 10, 100)}
    title = f"{name} neighbourhood: how strongly nodes learn along with the winner, step by step less (tau 0.1)"
    paper_figures.neighborhoods(f"{stem}.png", weights, title, winner)
    yield f"{stem}.png"


def perplexity(table: Table, stem: str) -> Iterator[str]:
    """Figure 6: how evenly the codes are used, by step."""
    labels = {EMA: "EMA-VQ", MAP: "map, hard", "gaussian": "map, Gaussian"}
    present = {setting: own for setting, own in table.seeds.items() if own}
    if not present:
        raise InputError(f"there is no finished run of {', '.join(labels)} on {table.dataset}")
    first = next(iter(present.values()))[0]
    size = int(np.prod(first.config["model.quantizer.grid_shape"]))
    for level in ("", "_top", "_bottom"):
        if f"train/perplexity{level}" in first.rows[-1]:
            values = {labels[setting]: series(own, f"train/perplexity{level}") for setting, own in present.items()}
            title = f"{table.dataset}: how evenly the codes{level.replace('_', ' of level ')} are used in a batch"
            paper_figures.perplexity(f"{stem}{level}.png", values, size, title)
            yield f"{stem}{level}.png"


def perturbation(table: Table, stem: str) -> Iterator[str]:
    """PSNR of reconstructions whose codes were all moved, by how far: the map against EMA-VQ."""
    values = {}
    for setting, label in ((MAP, "map"), (EMA, "EMA-VQ (codes by number)")):
        runs = [open_seed(seed) for seed in seeds_of(table, setting)]
        images = validation_images(runs[0])
        values[label] = [[psnr_after(run, images, offset) for offset in OFFSETS] for run in runs]
    title = f"{table.dataset}: how well images survive when all their codes are moved"
    figures.perturbation_curve(f"{stem}.png", OFFSETS, values, title)
    yield f"{stem}.png"


def psnr_after(run: Run, images: np.ndarray, offset: int) -> float:
    """Mean PSNR of reconstructions whose codes were all moved by an offset."""
    moved = inspection.shifted_reconstructions(run.model, run.variables, images, offset)
    return float(np.mean(measures.psnr(images, moved)))


def frontier(table: Table, stem: str) -> Iterator[str]:
    """Loss against topographic error and perturbation PSNR, by the schedule of the neighbourhood."""
    points = []
    for setting, label in table.labels.items():
        measured = [measures_of(seed) for seed in table.seeds[setting]]
        if setting == EMA or not measured:
            continue
        point = {"label": label, "paper": setting == MAP}
        usual = next((name for name in measured[0] if name.startswith("topographic_error")), "")  # comes first
        for name, key in (("loss", "loss"), ("topographic_error", usual), ("psnr", "perturbation_psnr_1")):
            if key in measured[0]:
                mean, std = mean_and_std([values[key] for values in measured])
                point |= {name: mean} | ({} if std is None else {f"{name}_std": std})
        points.append(point)
    counts = sorted({len(own) for setting, own in table.seeds.items() if setting != EMA and own})
    seeds = " to ".join(map(str, counts[:: max(1, len(counts) - 1)]))
    title = f"{table.dataset}: loss and order of the map, by how its neighbourhood shrinks ({seeds} seeds)"
    paper_figures.frontier(f"{stem}.png", points, title)
    yield f"{stem}.png"


FIGURES = {
    "1": ("1", initialisation),
    "2": ("2", codebook_maps),
    "3": ("2", moved_codes),
    "4": (None, functools.partial(neighborhood, "hard", "Hard")),
    "5": (None, functools.partial(neighborhood, "gaussian", "Gaussian")),
    "6": ("2", perplexity),
    "7": ("2", codebook_maps),
    "8": ("2", functools.partial(moved_codes, image=SHOWN[0])),
    "9": ("2", functools.partial(moved_codes, image=SHOWN[1])),
    "bit_errors": ("peers", order.bit_errors),
    "compression": ("peers", order.compression),
    "fewer_bits": ("peers", order.fewer_bits),
    "frontier": ("schedules", frontier),
    "perturbation": ("2", perturbation),
    "urlsom_3": (None, urlsom.loss_of_two_neurons),
    "urlsom_7": ("runs", urlsom.selectivity_by_sigma),
}
"""By figure, what it needs, and the function that draws it: no run, any "runs", or a table's settings."""


def draw_figure(name: str, folders: list[str], experiments: Mapping, out: str) -> Iterator[str]:
    """Draws a figure, once for each data set of the runs; gives the files.

    Raises:
      InputError: there is no run of a setting that it needs.
    """
    table_name, function = FIGURES[name]
    pathlib.Path(out).mkdir(parents=True, exist_ok=True)
    if table_name in (None, "runs"):
        yield from function(*([folders] if table_name else []), f"{out}/figure_{name}")
        return
    rows = experiments["TABLES"][table_name]["rows"]
    seeds = read_seeds(folders)
    datasets = {seed.config["dataset.name"]: None for seed in seeds if setting_of(seed.config, experiments) in rows}
    if not datasets:
        raise InputError(f"figure {name} needs runs of some of these settings: {', '.join(rows)}")
    for dataset in datasets:
        table = collect(seeds, experiments, table_name, dataset)
        for problem in table.problems:
            if problem.startswith("left out"):
                print(f"kvae: {problem}", file=sys.stderr)
        # A config.json may come from elsewhere: what it calls its data set is no path.
        of_file = re.sub(r"[^\w.-]", "_", dataset)[:100]
        yield from function(table, f"{out}/figure_{name}_{of_file}")


def main(argv: list[str]) -> int:
    """Runs the program; returns its exit status."""
    parser = program.Parser("python -m kvae.paper", __doc__)
    parser.add_argument("runs", nargs="*", metavar="RUNS", help="run folders, or folders above them")
    parser.add_argument("--figure", required=True, choices=FIGURES, help="its number in the paper, or its name")
    parser.add_argument("--out", metavar="DIR", default="figures", help="the folder of the pictures (%(default)s)")
    parser.add_argument("--experiments", metavar="FILE", help="what is compared, instead of kvae/paper/experiments.py")
    chosen = parser.parse_args(argv)
    with wrap_write_errors(chosen.out):
        for path in draw_figure(chosen.figure, chosen.runs, load_experiments(chosen.experiments), chosen.out):
            print(path)
    return 0
