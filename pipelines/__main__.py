"""`python -m pipelines`, which `./convoy` runs."""

import sys

from pipelines import environment
from pipelines.commands import main

if __name__ == "__main__":
    environment.prepare()
    sys.exit(main(sys.argv[1:]))
