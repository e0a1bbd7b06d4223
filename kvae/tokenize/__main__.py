"""The codes of a whole data set, as files that other programs read; and images from such codes.

    python -m kvae.tokenize RUN --images=FOLDER --out=DIR
    python -m kvae.tokenize RUN --dataset=NAME [--dataset.FIELD=VALUE ...] --out=DIR
    python -m kvae.tokenize RUN --decode=TOKENS --out=DIR

RUN is the folder of a run, on a disk or in a bucket (gs://bucket/run), or one that `save_pretrained` wrote. Without
--images and --dataset it is the run's own data set; --dataset.FIELD sets a field, as --config.dataset.FIELD does in
training. One row per image, in their order: its index, its name and label where it has them, and the codes of each
codebook, in shards of ArrayRecord (read by config.dataset.name "tokens", grain and tfds) or Parquet (read by pyarrow,
pandas and Hugging Face's datasets). tokens.json says what they are. Run the same command again and it goes on where it
stopped. Of several processes, each writes its share of the shards.
"""

import argparse
import sys

from kvae.core import program
from kvae.core.errors import InputError


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the arguments that set fields of the data set; raises InputError where they do not fit."""
    parser = program.Parser("python -m kvae.tokenize", __doc__)
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    parser.add_argument("--out", metavar="DIR", required=True, help="the folder to be written")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--images", metavar="FOLDER", help="all images below a folder, made to fit as in training")
    source.add_argument("--dataset", metavar="NAME", help="a data set by name, instead of that of the run")
    source.add_argument("--decode", metavar="TOKENS", help="makes PNG files of the tokens in a folder")
    parser.add_argument("--format", default="array_record", help="array_record or parquet (array_record)")
    parser.add_argument(
        "--size", type=int, help="edge of the images of --images, instead of that of the run, in pixels"
    )
    parser.add_argument(
        "--skip-unreadable", action="store_true", help="leave damaged images of --images out, and count"
    )
    parser.add_argument("--step", type=int, help="of the checkpoint (the newest)")
    parser.add_argument("--replica", type=int, default=0, help="which one, where several were trained at once (0)")
    parser.add_argument("--batch-size", type=int, default=64, help="images encoded at once on a host (64)")
    parser.add_argument("--shard-size", type=int, default=10_000, help="images in a file (10000)")
    options, fields = parser.parse_known_args(argv)
    for field in fields:
        if not field.startswith("--dataset.") or "=" not in field:
            raise InputError(f"{field!r} is not an option; fields of the data set are set as --dataset.data_dir=DIR")
    if options.images is None and (options.size is not None or options.skip_unreadable):
        raise InputError("--size and --skip-unreadable are of --images; a data set has fields, as --dataset.size=64")
    if fields and (options.images or options.decode):
        raise InputError(f"{fields[0]} sets a field of a data set, and there is none beside --images and --decode")
    for name in ("batch_size", "shard_size"):
        if (value := getattr(options, name)) < 1:
            raise InputError(f"--{name.replace('_', '-')} is {value}; it must be 1 or larger")
    return options, [field.removeprefix("--") for field in fields]


def main(argv: list[str]) -> int:
    """Runs the program; returns its exit status."""
    options, fields = parse(argv)
    # Imported here, so that a typo is told at once.
    from kvae.core.buckets import as_path, check_reachable, wrap_bucket_errors
    from kvae.runs import opening
    from kvae.runs.share import WEIGHTS
    from kvae.tokenize import decode, encode, source
    from kvae.training.parallel.cluster import joined_cluster
    from kvae.training.parallel.devices import keep_compiled_programs
    from kvae.training.workdir.journal import shown_on_terminal

    with joined_cluster() as process, shown_on_terminal(first_process=process == 0):
        keep_compiled_programs()
        check_reachable(options.run)
        with wrap_bucket_errors(options.run):
            is_shared = (as_path(options.run) / WEIGHTS).exists()
        run = (
            opening.from_pretrained(options.run)
            if is_shared
            else opening.load(options.run, options.step, options.replica)
        )
        if options.decode:
            decode.write_images(run, options.decode, options.out, options.batch_size)
            return 0
        if options.images:
            images = source.folder(run, options.images, options.size, options.skip_unreadable)
        else:
            images = source.dataset(run, options.dataset, fields)
        encode.write_tokens(run, images, options.out, options.format, options.batch_size, options.shard_size)
    return 0


if __name__ == "__main__":
    sys.exit(program.run(main, sys.argv[1:]))
