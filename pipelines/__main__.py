"""`python -m pipelines`, which `./convoy` runs."""

import sys

from pipelines import environment
from pipelines.commands import complain, main
from pipelines.leaving import leave
from tasks.paths import home

if __name__ == "__main__":
    try:
        environment.prepare()
    except OSError as error:
        sys.exit(
            complain(f"{error}; CONVOY_HOME (={home()}) must be a folder that can be written to", 2, False)
        )
    leave(main(sys.argv[1:]))
