"""Where the real datasets lie that tests marked `data` and benchmarks read; they are no part of the checkout."""

import os
from pathlib import Path

DATASETS = Path(
    os.environ.get("CONVOY_DATASETS", Path(__file__).parent.parent.parent / "shared" / "datasets")
)
