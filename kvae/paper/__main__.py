"""`python -m kvae.paper` draws a figure; see `kvae.paper.figures`."""

import sys

from kvae.core import program


def main(argv: list[str]) -> int:
    """Runs the program; returns its exit status."""
    # Imported here, so that a missing extra is one line.
    from kvae.paper import figures

    return figures.main(argv)


if __name__ == "__main__":
    sys.exit(program.run(main, sys.argv[1:]))
