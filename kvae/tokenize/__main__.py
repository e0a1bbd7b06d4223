"""Encodes a data set with a trained run and writes its codes to files; also decodes such files to images.

    python -m kvae.tokenize runs/photos --images=my_images --out=tokens
    python -m kvae.tokenize runs/photos --dataset=digits --dataset.size=32 --out=digit_tokens
    python -m kvae.tokenize runs/photos --decode=tokens --out=decoded

RUN is the folder of a run, local or in a bucket (gs://bucket/run), or a folder written by `save_pretrained`. Without
--images and --dataset the run's own data set is encoded; --dataset.FIELD=VALUE sets a field of the data set, as
--config.dataset.FIELD does in training.

Each image becomes one row, in order: its index, its name and label if it has them, and the codes of each codebook. Rows
are stored in shards of ArrayRecord (read by config.dataset.name "tokens", grain and TFDS) or Parquet (read by pyarrow,
pandas and Hugging Face's datasets); _tokens.json describes them. If the program is interrupted, the same command
resumes it and produces identical files. Several processes divide the shards among themselves.
"""

import argparse
import sys
from typing import Annotated

from annotated_types import Ge, Le

from kvae.core import program
from kvae.core.allocator import keep_freed_memory
from kvae.core.errors import InputError
from kvae.core.fields import Count, Size
from kvae.core.files import target_path, user_path

BatchSize = Annotated[int, Ge(1), Le(2**16)]


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses the arguments.

    Returns:
      The options, and the fields of the data set, such as "dataset.size=32".

    Raises:
      InputError: An argument is unknown, or two arguments cannot be combined.
    """
    count = program.number(Count)
    parser = program.Parser("python -m kvae.tokenize", __doc__)
    parser.add_argument("run", metavar="RUN", help="run folder, or folder of a shared run")
    parser.add_argument("--out", metavar="DIR", required=True, help="the folder to write to")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--images", metavar="FOLDER", help="encode all images below a folder, resized as in training")
    source.add_argument("--dataset", metavar="NAME", help="encode a data set by name instead of the run's own")
    source.add_argument("--decode", metavar="TOKENS", help="decode a folder of tokens to PNG files")
    parser.add_argument("--format", default="array_record", help="array_record or parquet (default: %(default)s)")
    parser.add_argument("--size", type=program.number(Size), help="edge of the --images in pixels (default: the run's)")
    parser.add_argument("--skip-unreadable", action="store_true", help="skip unreadable --images and report how many")
    parser.add_argument("--step", type=int, help="step of the checkpoint (default: the newest)")
    parser.add_argument(
        "--replica", type=int, default=0, help="index of the replica, if the run has several (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size",
        type=program.number(BatchSize),
        default=64,
        help="images per batch and process (default: %(default)s)",
    )
    parser.add_argument("--shard-size", type=count, default=10_000, help="images per file (default: %(default)s)")
    options, fields = parser.parse_known_args(argv)
    options.out = str(target_path("--out", options.out))
    if options.decode is not None:
        options.decode = str(user_path("--decode", options.decode))
    for field in fields:
        if not field.startswith("--dataset.") or "=" not in field:
            raise InputError(f"{field!r} is not an option; set a field of the data set as --dataset.FIELD=VALUE")
    if options.images is None and (options.size is not None or options.skip_unreadable):
        raise InputError("--size and --skip-unreadable need --images; for a data set use --dataset.size=64")
    if fields and (options.images or options.decode):
        raise InputError(f"{fields[0]} sets a field of a data set; it cannot be used with --images or --decode")
    return options, [field.removeprefix("--") for field in fields]


def main(argv: list[str]) -> int:
    """Runs the program with these arguments and returns its exit status."""
    options, fields = parse(argv)
    # Heavy imports come after argument parsing so that a typo is reported immediately.
    from kvae.runs import opening
    from kvae.tokenize import decode, encode, source
    from kvae.training.parallel.cluster import joined_cluster
    from kvae.training.parallel.devices import keep_compiled_programs
    from kvae.training.workdir.logs import shown_on_terminal

    with joined_cluster() as process, shown_on_terminal(first_process=process == 0):
        keep_compiled_programs()
        run = opening.open_run(options.run, options.step, options.replica)
        if options.decode:
            decode.write_images(run, options.decode, options.out, options.batch_size)
            return 0
        if options.images:
            images = source.folder_source(run, options.images, options.size, options.skip_unreadable)
        else:
            images = source.dataset_source(run, options.dataset, fields)
        encode.write_tokens(run, images, options.out, options.format, options.batch_size, options.shard_size)
    return 0


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(program.run(main, sys.argv[1:]))
