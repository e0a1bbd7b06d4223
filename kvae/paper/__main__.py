"""`python -m kvae.paper` draws a figure; see `kvae.paper.figures`."""

import sys

from kvae.core import program
from kvae.paper.figures import main

if __name__ == "__main__":
    sys.exit(program.run(main, sys.argv[1:]))
