"""Where things lie: everything Convoy writes is below one home folder."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
JOB_FILE = "job.json"  # in a run's folder: what it was begun with
DEFAULT_GALLERY = "default"  # the name of the one that is meant where none is named


def home() -> Path:
    """The folder below which data, runs and records lie: CONVOY_HOME, else the checkout."""
    return Path(os.environ.get("CONVOY_HOME", ROOT)).resolve()


def store() -> Path:
    """Ingested datasets and their DVC pointers."""
    return home() / "data" / "store"


def runs() -> Path:
    """One folder a run, named by its run key."""
    return home() / "runs"


def galleries() -> Path:
    """Faces by their names, a folder a gallery."""
    return home() / "galleries"


def called(folder: Path) -> str:
    """What --gallery calls the gallery in a folder: its name, or the path of one that lies elsewhere."""
    whole = folder.absolute()
    return whole.name if whole.parent == galleries() else str(whole)


def downloads() -> Path:
    """Sources that were brought from a URL, by their checksum."""
    return home() / ".cache" / "downloads"


def features() -> Path:
    """What frozen stages gave of a dataset's pictures, one file a split, named by what it depends on."""
    return home() / ".cache" / "features"


def recordings() -> Path:
    """Features of what models were asked about, one folder a registered model (tasks.recordings)."""
    return home() / "recordings"
