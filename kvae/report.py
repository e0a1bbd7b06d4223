"""`python -m kvae.report`: see `kvae.paper.tables`."""

import sys

from kvae import program
from kvae.paper.tables import main

if __name__ == "__main__":
    sys.exit(program.run(main, sys.argv[1:]))
