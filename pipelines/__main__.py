"""`python -m pipelines`, which `./convoy` runs."""

import sys

from pipelines import environment
from pipelines.commands import main
from pipelines.leaving import leave

if __name__ == "__main__":
    environment.prepare()
    leave(main(sys.argv[1:]))
