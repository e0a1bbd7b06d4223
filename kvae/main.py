"""The training program.

    python -m kvae.main --config=configs/photos_vqvae.py [--workdir=DIR] [--config.FIELD=VALUE ...] [--debug]

--config is a file, such as those in configs/, and after a colon a variant of it, such as :smoke. --workdir is the run's
folder, by default runs/<config name>. Any field of the file can be set: --config.steps=100. --debug shows the traceback
of an error.

Run the same command again and it goes on where it stopped. The exit status is 0, 2 after an error that you can mend,
and 75 where the run was asked to stop before its last step.
"""

import pathlib
import re
import sys
import traceback

from absl import flags
from ml_collections import config_flags

from kvae.errors import InputError, check_names
from kvae.training.journal import logged_to

STOPPED = 75
"""Exit status of a run that was asked to stop before its last step (EX_TEMPFAIL): a scheduler starts it again."""


def parse(argv: list[str]) -> tuple[dict, str, bool]:
    """The config, the workdir and whether to show tracebacks, from the command line.

    Raises:
      InputError: a flag, a config file, a field or a value that does not exist or does not fit.
    """
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=["kvae", *argv])
    flags.DEFINE_string("workdir", None, "The run's folder; by default runs/<config name>.", flag_values=values)
    flags.DEFINE_bool("debug", False, "Show the traceback of an error.", flag_values=values)
    chosen = next((a for a in argv if re.match(r"--?config(=|$)", a)), None)
    if chosen is None or "=" not in chosen:
        raise InputError("--config is missing; for example --config=configs/photos_vqvae.py")
    file, _, variant = chosen.partition("=")[2].partition(":")
    if not pathlib.Path(file).is_file():
        known = ", ".join(sorted(str(path) for path in pathlib.Path("configs").glob("*_*.py"))) or "none here"
        raise InputError(f"--config={file}: there is no such file; configs/ has {known}")
    try:
        base = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=base, sys_argv=["kvae", chosen])
        base(["kvae", chosen])
        for argument in argv:
            if field := re.match(r"--?config\.([\w.]+)", argument):
                check_field(base["config"].value, field[1])
        rest = values(["kvae", *argv])[1:]
    except InputError:
        raise
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        # An error inside a config file arrives as the text of its traceback; its last line says what is wrong.
        text, broken = str(error).strip(), "Traceback" in str(error)
        reason = f"{chosen}: {text.splitlines()[-1]}" if broken else " ".join(text.split())
        raise InputError(reason) from error
    if rest:
        raise InputError(f"{rest[0]!r} is not a flag; fields are set as --config.steps=100")
    name = pathlib.Path(file).stem + (f"_{variant}" if variant else "")
    return values["config"].value.to_dict(), values["workdir"].value or f"runs/{name}", values["debug"].value


def check_field(config, path: str) -> None:
    """Raises InputError unless `path`, such as "model.grid_shape", is a field of the config."""
    *sections, last = path.split(".")
    where = "config"
    for section in sections:
        check_names(where, [section], config.keys())
        config, where = config[section], f"{where}.{section}"
    check_names(where, [last], config.keys())


def main(argv: list[str]) -> int:
    """Runs the program; returns its exit status: 0, 2 after an error that the user can mend, or `STOPPED`."""
    if {"-h", "--help"} & set(argv):
        print(__doc__, end="")
        return 0
    debug = "--debug" in argv
    try:
        config, workdir, debug = parse(argv)
        # Imported here, so that a typo is told at once.
        from kvae.training.cluster import joined_cluster
        from kvae.training.devices import keep_compiled_programs

        with joined_cluster() as process, logged_to(workdir, first_process=process == 0):
            from kvae.training.loop import train

            keep_compiled_programs()
            reached = train(config, workdir)
    except InputError as error:
        if debug:
            traceback.print_exc()
        print(f"kvae: {error}", file=sys.stderr)
        return 2
    return 0 if reached == config["steps"] else STOPPED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
