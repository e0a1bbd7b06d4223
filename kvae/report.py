"""`python -m kvae.report`: see `kvae.paper.tables`."""

import sys

from kvae.paper.tables import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
