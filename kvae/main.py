"""Trains the model that a config describes.

    python -m kvae.main --config=configs/photos_vqvae.py [--workdir=DIR] [--config.FIELD=VALUE ...] [--debug]

Every field of the config can be set: --config.steps=100. `--config=FILE --help` lists them with their values. To resume
a run, run the same command again. Exit status: 0 if the run is complete; 2 after an error that you can fix; 75 if a
signal stopped the run before its last step.
"""

import os
import sys

from kvae.core import program
from kvae.core.allocator import keep_freed_memory
from kvae.core.errors import InputError

# Heavy imports stay inside functions, so that a typo or Ctrl-C is answered immediately.


def parse(argv: list[str]) -> tuple[dict, str]:
    """Returns the config and the workdir from the command line.

    Args:
      argv: the arguments, without the program's name.

    Raises:
      InputError: an unknown option, config file or field, or a value out of range.
    """
    from kvae.training.config.command_line import config_of

    parser = program.Parser("python -m kvae.main", __doc__)
    parser.add_argument(
        "--config", metavar="FILE[:VARIANT]", help="the config file, for example configs/photos_vqvae.py:smoke"
    )
    parser.add_argument(
        "--workdir", metavar="DIR", help="the run's folder, or gs://BUCKET/FOLDER (default: runs/<config name>)"
    )
    options, fields = parser.parse_known_args(argv)
    if not options.config:
        raise InputError("--config is missing; for example --config=configs/photos_vqvae.py")
    config, name = config_of(options.config, fields)
    return config, options.workdir or f"runs/{name}"


def main(argv: list[str]) -> int:
    """Trains the run that the arguments describe; returns the exit status."""
    if {"-h", "--help"} & {*argv} and any(argument.partition("=")[0] == "--config" for argument in argv):
        return show_fields([argument for argument in argv if argument not in ("-h", "--help")])
    config, workdir = parse(argv)
    from kvae.training.parallel.cluster import joined_cluster
    from kvae.training.parallel.devices import keep_compiled_programs
    from kvae.training.workdir.logs import logged_to
    from kvae.training.workdir.mirror import mirrored
    from kvae.training.workdir.run_config import open_address

    workdir = open_address(workdir)
    with (
        joined_cluster() as process,
        mirrored(workdir) as mirror,
        logged_to(mirror.folder, first_process=process == 0),
    ):
        from kvae.training.train import train

        keep_compiled_programs()
        if config.get("dataset", {}).get("name") == "tokens":
            from kvae.tokenize.of_run import with_tokens

            config = with_tokens(config)
        reached = train(config, workdir, mirror=mirror)
    return 0 if reached == config["steps"] else program.STOPPED


def show_fields(argv: list[str]) -> int:
    """Prints every field of the config that the arguments describe, with its value and meaning; returns 0."""
    from kvae.training.config.reference import as_text
    from kvae.training.config.sections import validate_config

    print(as_text(validate_config(parse(argv)[0])), end="")
    return 0


if __name__ == "__main__":
    program.exit_at_signals()
    keep_freed_memory()
    status = program.run(main, sys.argv[1:])
    if status == program.MISTAKE:
        sys.stdout.flush()
        # If the run's folder was deleted, background saves would raise while Python exits.
        os._exit(status)
    sys.exit(status)
