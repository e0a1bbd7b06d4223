"""`python -m kvae.paper` draws a figure; see `kvae.paper.figures`."""

import sys

from kvae.core import program


def main(argv: list[str]) -> int:
    """Runs the program with these arguments and returns its exit status."""
    # Imported here so that `program.run` reports a missing extra in one line.
    from kvae.paper import figures

    return figures.main(argv)


if __name__ == "__main__":
    sys.exit(program.run(main, sys.argv[1:]))
