"""Samples new images from a prior over codes.

    python -m kvae.sample runs/tokens_prior --out=samples
    python -m kvae.sample runs/tokens_prior --tokenizer=runs/photos --n=64 --out=samples

PRIOR is a run of configs/tokens_prior.py, RUN the run that encoded its tokens; without --tokenizer, it is the run that
the tokens name. Both are run folders, local or in a bucket, or folders written by `save_pretrained`. The images are
written as PNG files, and together as sheet.png. Image i depends only on the seed and on i. If the program is
interrupted, the same command resumes it. --compare prints how samples compare with held-out images: the share in the
intended class, and a distance to the training images.
"""

import argparse
import json
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kvae.core import program
from kvae.core.allocator import keep_freed_memory
from kvae.core.errors import InputError, wrap_read_errors
from kvae.core.fields import Count, Natural, NotNegative, Probability
from kvae.core.files import check_target, read_text, replaced, target_path, write_text

if TYPE_CHECKING:
    import numpy as np

    from kvae.runs.run import Run

# Heavy imports stay inside functions, so that a typo or Ctrl-C is answered immediately.

OPTIONS = "samples.json"
"""The file that records the options of a folder of samples."""

SHEET, COMPARISON = "sheet.png", "comparison.md"


def parse(argv: list[str]) -> argparse.Namespace:
    """Returns the options.

    Raises:
      InputError: An argument is unknown, missing or out of range.
    """
    count, natural = program.number(Count), program.number(Natural)
    parser = program.Parser("python -m kvae.sample", __doc__)
    parser.add_argument("prior", metavar="PRIOR", help="folder of a run of a prior")
    parser.add_argument("--tokenizer", metavar="RUN", help="folder of the run that encoded the tokens")
    parser.add_argument("--out", metavar="DIR", required=True, help="the folder to write to")
    parser.add_argument("--n", type=count, default=64, help="number of images (default: %(default)s)")
    parser.add_argument("--class", dest="label", metavar="NAME", help="class, by name or number (conditional priors)")
    parser.add_argument("--seed", type=natural, default=0, help="seed of the random numbers (default: %(default)s)")
    parser.add_argument(
        "--temperature",
        type=program.number(NotNegative),
        default=1.0,
        help="below 1, likely codes become more likely; 0 takes the likeliest (default: %(default)s)",
    )
    parser.add_argument("--top-k", type=natural, default=0, help="draw only from the k likeliest codes; 0 allows all")
    parser.add_argument(
        "--top-p",
        type=program.number(Probability),
        default=1.0,
        help="draw only from the fewest codes whose probabilities sum to this (default: %(default)s)",
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="also compare samples with held-out images of the tokenizer's data set, which needs labels",
    )
    parser.add_argument("--batch-size", type=count, default=64, help="images sampled at once (default: %(default)s)")
    parser.add_argument("--step", type=int, help="checkpoint of the prior (default: the one with the lowest loss)")
    parser.add_argument("--replica", type=int, default=0, help="replica of the prior (default: %(default)s)")
    parser.add_argument("--tokenizer-step", type=int, help="checkpoint of the tokenizer (default: the newest)")
    options = parser.parse_args(argv)
    options.out = target_path("--out", options.out)
    return options


def main(argv: list[str]) -> int:
    """Runs the program with these arguments and returns its exit status."""
    options = parse(argv)
    from kvae.core.errors import wrap_write_errors
    from kvae.runs import generation, opening
    from kvae.tokenize.of_run import tokenizer_of
    from kvae.training.parallel.devices import keep_compiled_programs
    from kvae.training.workdir.logs import shown_on_terminal

    with shown_on_terminal(), wrap_write_errors(options.out):
        keep_compiled_programs()
        prior = opening.open_run(options.prior, "best" if options.step is None else options.step, options.replica)
        options.tokenizer = options.tokenizer or tokenizer_of(prior)
        tokenizer = opening.open_run(options.tokenizer, options.tokenizer_step)
        generation.check_tokenizer(prior, tokenizer)
        write_samples(prior, tokenizer, options)
        if options.compare:
            print_comparison(prior, tokenizer, options)
    return 0


def recorded(prior: "Run", options: argparse.Namespace) -> dict[str, Any]:
    """Returns the options that determine the samples.

    Raises:
      InputError: The output folder holds other files, or samples made with other options.
    """
    names = ("tokenizer", "tokenizer_step", "label", "seed", "temperature", "top_k", "top_p")
    now = {"prior": f"{prior.workdir} at step {prior.step}", "replica": prior.replica}
    now |= {name: getattr(options, name) for name in names}
    check_target(options.out, OPTIONS)
    if (options.out / OPTIONS).exists():
        with wrap_read_errors(options.out / OPTIONS, "delete the folder of the samples"):
            before = dict(json.loads(read_text(options.out / OPTIONS)))
        if changes := [f"{name} {before.get(name)} -> {now[name]}" for name in now if before.get(name) != now[name]]:
            raise InputError(
                f"--out={options.out} holds samples made with other options: {'; '.join(changes)}; choose another --out"
            )
    return now


def write_samples(prior: "Run", tokenizer: "Run", options: argparse.Namespace) -> None:
    """Writes the images that are missing, and the sheet of all images.

    Raises:
      InputError: The folder holds samples made with other options, or the prior has no such class.
    """
    import jax
    import tqdm

    from kvae.runs import generation

    record = recorded(prior, options)
    paths = [options.out / f"{number:05}.png" for number in range(options.n)]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    batches = [missing[first : first + options.batch_size] for first in range(0, len(missing), options.batch_size)]
    positions = sum(math.prod(shape) for _, shape, *_ in prior.config["model"]["codebooks"])
    with tqdm.tqdm(total=len(batches) * positions, desc=str(options.out), unit=" codes", disable=None) as bar:
        for batch in batches:
            padded = batch + batch[-1:] * (min(options.batch_size, options.n) - len(batch))  # one compiled program
            codes = generation.sample_codes(
                prior,
                generation.split_key(jax.random.key(options.seed), padded),
                label=options.label,
                temperature=options.temperature,
                top_k=options.top_k,
                top_p=options.top_p,
                report=bar.update,
            )
            write_text(options.out / OPTIONS, json.dumps(record, indent=2) + "\n")
            for number, image in zip(batch, tokenizer.decode(codes), strict=False):  # padding is left out
                save_png(paths[number], image)
    write_sheet(paths, options.out / SHEET)


def print_comparison(prior: "Run", tokenizer: "Run", options: argparse.Namespace) -> None:
    """Prints how samples compare with real images, and writes it to OUT/comparison.md."""
    from kvae.runs import sample_quality

    filters = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p")}
    text = sample_quality.markdown(sample_quality.compare(prior, tokenizer, options.seed, **filters))
    write_text(options.out / COMPARISON, text)
    print(text, end="")


def write_sheet(paths: Sequence[pathlib.Path], sheet: pathlib.Path) -> None:
    """Writes one picture of all images, row by row in a square."""
    import numpy as np
    from PIL import Image

    from kvae.plots.tiles import join_tiles

    images = np.stack([np.asarray(Image.open(path, formats=["PNG"])) for path in paths])
    columns = math.ceil(math.sqrt(len(images)))
    numbers = np.full(math.ceil(len(images) / columns) * columns, -1)
    numbers[: len(images)] = np.arange(len(images))
    save_png(sheet, join_tiles(images, numbers.reshape(-1, columns)))


def save_png(path: pathlib.Path, image: "np.ndarray") -> None:
    """Writes an image uint8 [h, w, 3]."""
    from PIL import Image

    with replaced(path) as incomplete:
        Image.fromarray(image).save(incomplete, "PNG")


if __name__ == "__main__":
    keep_freed_memory()
    program.exit_at_signals()
    sys.exit(program.run(main, sys.argv[1:]))
