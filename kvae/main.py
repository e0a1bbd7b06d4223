"""The training program.

    python -m kvae.main --config=configs/photos_vqvae.py [--workdir=DIR] [--config.FIELD=VALUE ...] [--debug]

Any field of the file can be set: --config.steps=100. `--config=FILE --help` lists them. Run the same command again and
it goes on where it stopped. The exit status is 0, 2 after an error that you can mend, and 75 where the run was asked to
stop before its last step.
"""

import os
import sys

from kvae.core import program
from kvae.core.errors import InputError

# The rest is imported where it is used: so that a typo is told, and a signal heeded, at once.


def parse(argv: list[str]) -> tuple[dict, str]:
    """The config and the workdir, from the command line.

    Raises:
      InputError: an option, a config file, a field or a value that does not exist or does not fit.
    """
    from kvae.training.config.command_line import config_of

    parser = program.Parser("python -m kvae.main", __doc__)
    parser.add_argument("--config", metavar="FILE[:VARIANT]", help="such as configs/photos_vqvae.py:smoke")
    parser.add_argument("--workdir", metavar="DIR", help="the run's folder, or gs://BUCKET/FOLDER (runs/<config name>)")
    options, fields = parser.parse_known_args(argv)
    if not options.config:
        raise InputError("--config is missing; for example --config=configs/photos_vqvae.py")
    config, name = config_of(options.config, fields)
    return config, options.workdir or f"runs/{name}"


def main(argv: list[str]) -> int:
    """Trains the run that the arguments describe; returns the exit status."""
    if {"-h", "--help"} & {*argv} and any(argument.startswith("--config=") for argument in argv):
        return show_fields([argument for argument in argv if argument not in ("-h", "--help")])
    config, workdir = parse(argv)
    from kvae.training.parallel.cluster import joined_cluster
    from kvae.training.parallel.devices import keep_compiled_programs
    from kvae.training.workdir.journal import logged_to
    from kvae.training.workdir.mirror import mirrored
    from kvae.training.workdir.run_config import check_place

    check_place(workdir, config)
    with (
        joined_cluster() as process,
        mirrored(workdir) as mirror,
        logged_to(mirror.folder, first_process=process == 0),
    ):
        from kvae.training.train import train

        keep_compiled_programs()
        reached = train(config, workdir, mirror=mirror)
    return 0 if reached == config["steps"] else program.STOPPED


def show_fields(argv: list[str]) -> int:
    """Prints every field of the config that the arguments describe; returns 0."""
    from kvae.training.config.reference import as_text
    from kvae.training.config.sections import validate_config

    print(as_text(validate_config(parse(argv)[0])), end="")
    return 0


if __name__ == "__main__":
    program.exit_at_signals()
    status = program.run(main, sys.argv[1:])
    if status == program.MISTAKE:
        sys.stdout.flush()
        # What was still being saved, perhaps to a folder that is gone, would fail loudly as Python ends.
        os._exit(status)
    sys.exit(status)
