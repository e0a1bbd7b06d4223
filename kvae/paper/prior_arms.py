"""The experiment on priors: does the order of a map help to model its codes?

    python launch/sweep.py --table=priors --dataset=photos --seeds=3

Each arm is a prior that differs from the plain one, a softmax over a table of codes, in its input, head or loss. It is
trained on the codes of several tokenisers, whose seeds pair with the priors' seeds. Arms that use the grid have two
controls: the same map with its codes shuffled, and EMA-VQ with its codes sorted along principal components. Arms that
use codewords work with any codebook, so an address pays only if it beats them too.
"""

import pathlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np

from kvae.core.markdown import to_markdown
from kvae.measures import psnr
from kvae.models.model import Model
from kvae.paper.tables import format_mean
from kvae.plots.arms import draw_differences
from kvae.runs.opening import load
from kvae.runs.run import Run
from kvae.runs.seeds import read_seeds
from kvae.training.config.sections import build_model, load_data
from kvae.training.evaluate import samples
from kvae.training.workdir.run_config import read_config_json

TRAINING = {"steps": 400, "log_every_steps": 50, "evaluate_every_steps": 50, "checkpoint_every_steps": 400}
TRAINING |= {"patience_evaluations": 0}
PLAIN = {"model.embeddings": ("table",), "model.head": "softmax", "model.loss": "one_hot"}
"""The plain prior, and what its arms change."""


class Arm(NamedTuple):
    """A kind of prior.

    Attributes:
      label: its row in the table.
      fields: config fields that differ from the plain prior's.
    """

    label: str
    fields: dict[str, object]


ARMS = {
    "plain": Arm("plain: softmax, table of codes", {}),
    "smoothed": Arm("loss: label smoothing", {"model.loss": "smoothed"}),
    "soft_codewords": Arm("loss: soft, by codewords", {"model.loss": "soft_codewords"}),
    "codeword_input": Arm("input: codeword", {"model.embeddings": ("codeword",)}),
    "codeword_and_table": Arm("input: codeword and table", {"model.embeddings": ("codeword", "table")}),
    "codeword_head": Arm("head: tied to codewords", {"model.head": "codewords"}),
    "soft_grid": Arm("loss: soft, by grid", {"model.loss": "soft_grid"}),
    "address_input": Arm("input: address", {"model.embeddings": ("address",)}),
    "address_head": Arm("head: address", {"model.head": "address"}),
    "address_both": Arm("input and head: address", {"model.embeddings": ("address",), "model.head": "address"}),
    "clusters": Arm("head: clusters", {"model.head": "clusters"}),
}
ANY_CODEBOOK = ("plain", "smoothed", "soft_codewords", "codeword_input", "codeword_and_table", "codeword_head")
GRID = ("soft_grid", "address_input", "address_head", "address_both", "clusters")
SHORT = ("plain", "codeword_input", "address_input", "address_head")

CROPS = (1_000, 0)
"""Numbers of training images; 0 is all."""


class Codes(NamedTuple):
    """Codes to model.

    Attributes:
      label: heading of the column.
      tokenizer: setting of `kvae.paper.experiments` that encodes the images.
      numbering: order of the codes, see `kvae.data.numbering.NUMBERINGS`.
      arms: names in `ARMS`.
      crops: numbers of training images.
    """

    label: str
    tokenizer: str
    numbering: str
    arms: tuple[str, ...]
    crops: tuple[int, ...] = CROPS


CODES = {
    "map": Codes("map, two axes", "tuned_map", "as_trained", ANY_CODEBOOK + GRID),
    "map_shuffled": Codes("the same, shuffled", "tuned_map", "shuffled", GRID),
    "ema": Codes("EMA-VQ, restarts", "tuned_ema_restarts_3", "as_trained", ANY_CODEBOOK),
    "ema_sorted": Codes("the same, sorted", "tuned_ema_restarts_3", "by_components", GRID),
    "cube": Codes("map, three axes", "tuned_cube", "as_trained", SHORT, (0,)),
    "fsq": Codes("FSQ", "tuned_fsq", "as_trained", SHORT, (0,)),
}

REPLACED = 0.1
"""Share of the codes that are replaced by samples, to compare tokenisers."""


def folder_of(runs: pathlib.Path, dataset: str) -> pathlib.Path:
    """Returns the folder of the priors of a data set, and of the tokens that they train on."""
    return runs / f"{dataset}_priors"


def commands(runs: pathlib.Path, dataset: str, seeds: int, smoke: bool) -> Iterator[tuple[str, list[str]]]:
    """Yields the name and command of each step after the training of the tokenisers: module, then arguments.

    Args:
      runs: the folder of all runs.
      dataset: the data set of the tokenisers.
      seeds: number of seeds.
      smoke: True trains priors of four steps.
    """
    training = TRAINING | ({"steps": 4, "evaluate_every_steps": 4, "log_every_steps": 4} if smoke else {})
    for seed in range(seeds):
        for tokenizer in dict.fromkeys(codes.tokenizer for codes in CODES.values()):
            run, out = runs / dataset / tokenizer, folder_of(runs, dataset) / "tokens" / tokenizer / str(seed)
            yield (
                f"tokens of {tokenizer}, seed {seed}",
                ["kvae.tokenize", str(run), f"--replica={seed}", f"--out={out}"],
            )
        for name, codes in CODES.items():
            for crops in codes.crops:
                for arm in codes.arms:
                    fields = training | PLAIN | ARMS[arm].fields | {
                        "seed": seed,
                        "dataset.path": str(folder_of(runs, dataset) / "tokens" / codes.tokenizer / str(seed)),
                        "dataset.train_examples": crops,
                        "dataset.numbering": codes.numbering,
                    }  # fmt: skip
                    place = pathlib.Path(name, f"{arm}_{crops or 'all'}", str(seed))
                    yield (
                        f"prior {place}",
                        [
                            "kvae.main",
                            "--config=configs/tokens_prior.py",
                            f"--workdir={folder_of(runs, dataset) / place}",
                            *(f"--config.{field}={value}" for field, value in fields.items()),
                        ],
                    )


def read_bits(folder: pathlib.Path) -> dict[tuple[str, str, int, int], float]:
    """Returns the lowest bits per held-out code of each finished prior by (codes, arm, crops, seed)."""
    names = {(codes.tokenizer, codes.numbering): name for name, codes in CODES.items()}
    bits = {}
    for seed in read_seeds([str(folder)]):
        config, path = seed.config, pathlib.Path(seed.config["dataset.path"])
        fields = {name: tuple(config[name]) if isinstance(config[name], list) else config[name] for name in PLAIN}
        arm = next((arm for arm in ARMS if PLAIN | ARMS[arm].fields == fields), None)
        codes = names.get((path.parent.name, config["dataset.numbering"]))
        if arm and codes and not seed.problem:
            lowest = min(row["valid/bits"] for row in seed.evaluations)
            bits[codes, arm, config["dataset.train_examples"], seed.number] = lowest
    return bits


def differences(bits: Mapping[tuple, float], codes: str, arm: str, crops: int) -> list[float]:
    """Returns the bits per code of an arm minus the plain prior's on the same tokens, for each seed of both."""
    tokenizer = CODES[codes].tokenizer
    plain = next(name for name, other in CODES.items() if other.tokenizer == tokenizer and "plain" in other.arms)
    seeds = sorted(seed for *where, seed in bits if where == [codes, arm, crops])
    pairs = [(bits[codes, arm, crops, seed], bits.get((plain, "plain", crops, seed))) for seed in seeds]
    return [one - other for one, other in pairs if other is not None]


def markdown(runs: pathlib.Path, dataset: str) -> str:
    """Returns the tables: bits per code by arm and codes, then the tokenisers side by side."""
    folder = folder_of(runs, dataset)
    bits, sizes, parts = read_bits(folder), _head_sizes(folder), []
    for crops in CROPS:
        seeds = {seed for *_, of_crops, seed in bits if of_crops == crops}
        text = f"{crops:,}" if crops else "all"
        parts.append(f"### Priors on {dataset}, {text} training images, n = {len(seeds)} seeds\n")
        parts.append(to_markdown(_pivot(bits, sizes, crops)) + "\n")
    parts.append("### Tokenisers, plain prior, all training images\n")
    parts.append(to_markdown(_by_tokenizer(runs, dataset, bits)) + "\n")
    return "\n".join(parts)


def figure(folders: list[str], stem: str) -> Iterator[str]:
    """Draws the differences of all arms, from the folder of the priors of a data set."""
    panels, counts = {}, []
    for folder in folders:
        bits = read_bits(pathlib.Path(folder))
        for crops in CROPS:
            panel = {
                codes.label: {
                    ARMS[arm].label: values
                    for arm in codes.arms
                    if arm != "plain" and (values := differences(bits, name, arm, crops))
                }
                for name, codes in CODES.items()
                if crops in codes.crops
            }
            counts += [len(values) for rows in panel.values() for values in rows.values()]
            if any(panel.values()):
                panels[f"{crops:,} training images" if crops else "all training images"] = panel
    low, high = min(counts, default=0), max(counts, default=0)
    note = (
        f"Dots: means over seeds (n = {low}{f' to {high}' if high > low else ''}); lines: lowest to highest. The "
        "plain prior is a softmax over a table of codes. Shuffled and sorted codes are controls: an address pays only "
        "where it beats them, and the codeword, which every codebook has."
    )
    title = "What the address of a code, and its codeword, are worth to a prior"
    draw_differences(f"{stem}.png", panels, title, note, "bits per code minus the plain prior's (left is better)")
    yield f"{stem}.png"


def _head_sizes(folder: pathlib.Path) -> dict[str, str]:
    """Returns the number of parameters of each arm's head on the codes of the map, as text."""
    trained = {arm: next(iter(sorted(folder.glob(f"map/{arm}_*/*/config.json"))), None) for arm in ARMS}
    models = {arm: build_model(read_config_json(str(path.parent))) for arm, path in trained.items() if path}
    return {arm: f"{head_parameters(models[arm]):,}" if arm in models else "—" for arm in ARMS}


def _pivot(bits: Mapping[tuple, float], sizes: Mapping[str, str], crops: int) -> list[list[str]]:
    columns = {name: codes for name, codes in CODES.items() if crops in codes.crops}
    rows = [["prior", "head parameters", *(codes.label for codes in columns.values())]]
    for arm, (label, _) in ARMS.items():
        cells = []
        for name in columns:
            of_arm = [value for key, value in bits.items() if key[:3] == (name, arm, crops)]
            values = of_arm if arm == "plain" else differences(bits, name, arm, crops)
            text = format_mean(values, 2) if values else "—"
            cells.append(text if arm == "plain" or not values or text.startswith("-") else f"+{text}")
        rows.append([label, sizes[arm], *cells])
    return rows


def head_parameters(model: Model) -> int:
    """Returns the number of parameters of the output heads of a prior."""
    keys = jax.random.key(0)
    codes = {name: np.zeros((1, *shape), np.int32) for name, shape in model.layout.shapes.items()}
    shapes = jax.eval_shape(lambda: model.init(keys, codes, method="log_likelihood"))["params"]
    heads = [part for name, part in shapes.items() if name.startswith("predictors")]
    return sum(leaf.size for leaf in jax.tree.leaves(heads))


def _by_tokenizer(runs: pathlib.Path, dataset: str, bits: Mapping[tuple, float]) -> list[list[str]]:
    rows = [["codes", "bits per code", "bits per image", "PSNR (dB)", f"PSNR lost, {REPLACED:.0%} sampled (dB)"]]
    for name, codes in CODES.items():
        if "plain" not in codes.arms:
            continue
        seeds = sorted(seed for *where, seed in bits if where == [name, "plain", 0])
        results = []
        for seed in seeds:
            prior = load(str(folder_of(runs, dataset) / name / "plain_all" / str(seed)))
            whole, lost = psnr_with_samples(prior, load(str(runs / dataset / codes.tokenizer), replica=seed), seed)
            per_code = bits[name, "plain", 0, seed]
            results.append((per_code, per_code * prior.model.layout.length, whole, lost))
        columns = [list(column) for column in zip(*results, strict=True)]
        decimals = (2, 0, 2, 2)
        cells = [format_mean(column, places) for column, places in zip(columns, decimals, strict=False)]
        rows.append([codes.label, *(cells or ["—"] * len(decimals))])
    return rows


def psnr_with_samples(prior: Run, tokenizer: Run, seed: int, count: int = 256) -> tuple[float, float]:
    """Returns the PSNR of held-out images, and how much is lost if `REPLACED` of their codes are sampled.

    Args:
      prior: the prior.
      tokenizer: the run that encoded its codes.
      seed: seed of the places and samples.
      count: number of images.
    """
    name, validation = next(iter(load_data(tokenizer.config)[0].validation.items()))
    images = samples({name: validation}, min(count, len(validation)))["image"]
    codes = tokenizer.encode(images)
    random = np.random.default_rng(seed)
    mask = {name: random.random(array.shape) < REPLACED for name, array in codes.items()}
    sampled = prior.sample_codes(len(images), key=jax.random.key(seed), codes=codes, mask=mask)
    whole, changed = (float(psnr(images, tokenizer.decode(used)).mean()) for used in (codes, sampled))
    return whole, whole - changed
