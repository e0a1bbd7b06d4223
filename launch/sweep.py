"""Trains all runs of a table and prints the table. See `kvae.paper.sweep`, or --help."""

import sys

from kvae.core import program
from kvae.paper import sweep

if __name__ == "__main__":
    sys.exit(program.run(sweep.main, sys.argv[1:]))
