"""`python -m pipelines`, which `./convoy` runs."""

import sys

from pipelines import environment
from pipelines.commands import complain, main
from tasks.paths import home

if __name__ == "__main__":
    try:
        environment.prepare()
    except OSError as error:
        sys.exit(
            complain(f"{error}; CONVOY_HOME (={home()}) must be a folder that can be written to", 2, False)
        )
    sys.exit(main(sys.argv[1:]))
