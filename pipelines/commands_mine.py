"""`./convoy mine`: bootstrapping, a detector's own false alarms as pictures of what it is not to find.

Sung and Poggio 1998, https://doi.org/10.1109/34.655648: train, look for the class in photographs that show none of it,
add what is found to the training pictures of another class, and go on training.
"""

from pathlib import Path
from typing import Annotated, Any, cast

from cyclopts import Parameter

from data.dataset import Dataset
from data.decode import decode_image, read_size
from data.export import export
from data.ingest import IngestConfig
from data.samples import read_photo
from pipelines.commands_train import collect, require_replaceable
from pipelines.families import Executor
from pipelines.options import Changes, Json, quiet_stdout
from pipelines.parameters import AUTO, merge, parse_changes, section
from pipelines.render import ConsoleReporter, emit, table
from pipelines.runner import run_flow
from tasks import versions
from tasks.card import Preprocessing
from tasks.classification import ClassificationConfig
from tasks.drawing import distinct
from tasks.predict import load_predictor
from tasks.slidingwindow import WindowScorer, detect, write_crops

FAMILY = "classification"
DIVERSE_IOU = 0.5  # windows that overlap by more show the same mistake


def mine(
    name: str,
    photo: str,
    /,
    *photos: str,
    label: Annotated[str, Parameter(name="--class")],
    other: Annotated[str, Parameter(name="--as")],
    pictures: Path,
    windows: Annotated[list[int] | None, Parameter(negative=(), consume_multiple=True)] = None,
    rounds: int = 5,
    steps: int = 350,
    score: float = 0.2,
    most: int = 120,
    recipe: str = AUTO,
    changes: Changes = None,
    executor: Executor = "ray",
    out: Path | None = None,
    as_json: Json = False,
) -> None:
    """Add a classifier's false alarms in photographs to its dataset, round by round.

    Each round trains by the flow that `train` runs, from the weights of the round before, looks over the photographs
    by sliding windows, and makes the next version of the dataset. Validation and test pictures stay as they are.
    Example: ./convoy mine faces_patches skimage:brick skimage:coffee --class face --as other --pictures patches

    Parameters
    ----------
    name
        Name of an ingested dataset of classification.
    photo
        A picture that shows nothing of the class, or a photograph that scikit-image ships: skimage:coffee.
    photos
        More of them.
    label
        The class that is to be found by sliding windows, and is in none of the photographs.
    other
        The class that false alarms are pictures of.
    pictures
        Folder for the dataset's pictures and what is mined; one that is there is gone on with.
    windows
        Sides of windows, in pixels of the photographs; otherwise as in detect-windows.
    rounds
        At most so many; a round without a false alarm is the last.
    steps
        Of training in each round, whatever the number of pictures.
    score
        Least probability of a false alarm.
    most
        At most so many of each photograph in a round, the most probable first.
    recipe
        Which recipe of params.yaml; auto: the one called like the dataset, else `default`.
    executor
        Where to train: ray, or in_process.
    out
        Folder to copy the last round's model to. Training goes on from there by --set transfer.weights=FOLDER/model.
    """
    if rounds < 1 or steps < 1:
        raise ValueError(f"rounds (={rounds}) and steps (={steps}) must be at least 1")
    nested, every = parse_changes(changes or []), (photo, *photos)
    if out is not None:
        require_replaceable(out / "model")
    data = versions.open_stored(name)
    require_classes(data, label, other)
    require_fitting(every, windows or [])
    rows: list[tuple[Any, ...]] = []
    with quiet_stdout(as_json):
        if not pictures.exists():
            export(data, "folders", pictures)
        for number in range(1, rounds + 1):
            data = versions.open_stored(name)
            summary = train(data, name, recipe, nested, steps, executor)
            model = Path(summary["folder"]) / "model"
            nested = merge(nested, {"transfer": {"weights": summary["key"]}})
            files, looked = false_alarms(
                model, every, label, windows or [], score, most, pictures / "train" / other
            )
            rows.append((number, data.info.num_images("train"), looked, len(files), summary["key"]))
            if not files:
                break
            added = versions.add(
                pictures, name=name, family=FAMILY, config=section("ingest", IngestConfig, {})
            )
            ConsoleReporter().note(
                f"round {number}: {len(files)} false alarms in {looked:,} windows of {len(every)} photographs, "
                f"now pictures of {other}; {name} has digest {added.digest[:8]}"
            )
        if out is not None:
            collect(model.parent, out)
    columns = ("round", "training pictures", "windows", "false alarms", "run")
    begun = model if out is None else out / "model"
    after = f"next: ./convoy train {FAMILY} --dataset {name} --set transfer.weights={begun}"
    document = {
        "dataset": name,
        "model": begun,
        "rounds": [dict(zip(columns, row, strict=True)) for row in rows],
    }
    emit(document, [table(f"False alarms of {label} in {name}", columns, rows), after], as_json)


def require_classes(data: Dataset, label: str, other: str) -> None:
    """Raise ValueError for a dataset or for classes that nothing can be mined for."""
    data.require_family(FAMILY)
    if label == other or {label, other} - set(data.info.classes):
        raise ValueError(
            f"--class (={label}) and --as (={other}) must be two classes of {data.info.name}: "
            f"{', '.join(data.info.classes)}"
        )


def require_fitting(photos: tuple[str, ...], windows: list[int]) -> None:
    """Raise ValueError or FileNotFoundError for photographs that cannot be looked over, before anything is trained."""
    for photo in photos:
        try:
            shorter = min(read_size(read_photo(photo)))
        except ValueError as error:
            raise ValueError(f"{photo}: {error}") from None
        if max(windows, default=1) > shorter or min(windows, default=1) < 1:
            asked = " ".join(map(str, windows))
            raise ValueError(
                f"--windows (={asked}) must be from 1 to {shorter} px, the shorter side of {photo}"
            )


def train(
    data: Dataset, name: str, recipe: str, nested: dict[str, Any], steps: int, executor: Executor
) -> dict[str, Any]:
    """A run of `steps` steps, not tested."""
    from pipelines.configuration import configuration

    config = cast(ClassificationConfig, configuration(FAMILY, name, recipe, nested))
    num_images = data.info.num_images("train")
    epochs = steps / (num_images // min(config.train.batch_size, num_images))
    changes = merge(nested, {"train": {"epochs": epochs}})
    return run_flow(FAMILY, name, recipe, changes, stop_after="train", executor=executor)


def false_alarms(
    model: Path,
    photos: tuple[str, ...],
    label: str,
    windows: list[int],
    score: float,
    most: int,
    folder: Path,
) -> tuple[list[Path], int]:
    """Write what `model` finds in photographs as pictures into `folder`: the files, and windows looked at."""
    predictor = load_predictor(model)
    scorer, preprocessing = WindowScorer(predictor), predictor.card.preprocessing
    assert isinstance(preprocessing, Preprocessing)  # else there were no scorer
    files, looked = [], 0
    for photo, stem in zip(
        photos, distinct(Path(each).stem.replace(":", "-") for each in photos), strict=True
    ):
        picture = decode_image(read_photo(photo), channels=preprocessing.channels)
        scan = detect(scorer, picture, [label], windows, score, DIVERSE_IOU, most)
        looked += scan.num_windows
        files += write_crops(folder, stem, picture, scan, preprocessing)
    return files, looked
