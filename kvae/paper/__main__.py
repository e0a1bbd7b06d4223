"""`python -m kvae.paper`: see `kvae.paper.figures`."""

import sys

from kvae.paper.figures import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
