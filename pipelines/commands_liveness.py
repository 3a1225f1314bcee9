"""`./convoy liveness`: sets of simulated attacks, and how well a model tells them from real faces."""

from dataclasses import asdict
from pathlib import Path

from cyclopts import App

from data.aligned import FaceAlignment, Method
from data.counting import counted
from data.dataset import SPLITS, Split
from pipelines.options import Json
from pipelines.render import ConsoleReporter, emit, table
from pipelines.reporting import progress_of
from tasks import registry
from tasks.facealign import open_aligner
from tasks.liveness import MAX_BPCER, Liveness, Share
from tasks.livenessmodel import Rate, fit_and_test, keep_threshold, real_class, too_fine
from tasks.predict import load_predictor
from tasks.spoofset import PeopleSplit, write_spoof_set
from tasks.versions import open_stored

app = App(name="liveness", help="Tell real faces from presentation attacks.")


@app.command
def simulate(
    source: Path,
    out: Path,
    /,
    *,
    method: Method = "none",
    weights: str = "",
    side_px: int = 112,
    seed: int = 0,
    val_fraction: float = 0.15,
    test_fraction: float = 0.25,
    as_json: Json = False,
) -> None:
    """Write real faces and simulated prints and replays of them, by split, class and person.

    Example: ./convoy liveness simulate people/ spoofs/

    Parameters
    ----------
    source
        A folder or an archive with a folder for each person; lists of people are obeyed.
    out
        A new folder, for ./convoy data add.
    method
        How faces are found: none takes the central square; mtcnn finds them (see ./convoy align).
    weights
        Of mtcnn: package:facenet_pytorch, a folder or a file; of landmarks68: a file.
    side_px
        Side of the pictures.
    seed
        Of everything that is drawn.
    val_fraction
        Share of the people for validation, where the source has no list.
    test_fraction
        The same for test.
    """
    alignment = FaceAlignment.parse({"method": method, "side_px": side_px, "weights": weights}, "")
    people = PeopleSplit(val_fraction=val_fraction, test_fraction=test_fraction)
    reporter = ConsoleReporter()
    try:
        written = write_spoof_set(
            source, out, open_aligner(alignment), seed, people, on_progress=progress_of(reporter, "simulate")
        )
    finally:
        reporter.close()
    kinds = sorted({kind for counts in written.counts.values() for kind in counts})
    rows = [
        (split, written.people[split], *(written.counts[split].get(kind, 0) for kind in kinds))
        for split in SPLITS
    ]
    document = {"out": out, **asdict(written)}
    told = f"wrote {out}; {counted(len(written.left_out), 'picture')} without a face"
    emit(document, [table("Pictures", ("split", "people", *kinds), rows), told], as_json)


@app.command
def evaluate(
    model: str,
    /,
    *,
    dataset: str | None = None,
    split: Split = "test",
    max_bpcer: float | None = None,
    max_apcer: float | None = None,
    out: Path | None = None,
    as_json: Json = False,
) -> None:
    """Fit a liveness threshold on validation faces, and judge others by it: APCER, BPCER, ACER.

    Example: ./convoy liveness evaluate models:/classifier-spoofs@champion --max-bpcer 0.02

    Parameters
    ----------
    model
        A classifier with the class real and others for attacks: models:/NAME@ALIAS, a run key, or a folder.
    dataset
        Name of an ingested dataset; otherwise the one that the model was trained on.
    split
        Which faces are judged: not those of validation, to which the threshold is fitted.
    max_bpcer
        Greatest share of real faces refused on validation; 0.05 if neither is given.
    max_apcer
        Instead: greatest share of attacks accepted on validation, of every type.
    out
        A new folder for the model with this threshold in its card, for predict --liveness.
    """
    if split == "val":
        raise ValueError("--split (=val) is what the threshold is fitted to: judge others, test")
    if max_bpcer is not None and max_apcer is not None:
        raise ValueError("--max-bpcer and --max-apcer each fix the threshold: give one")
    rate: Rate = "bpcer" if max_apcer is None else "apcer"
    at = max_apcer if max_apcer is not None else MAX_BPCER if max_bpcer is None else max_bpcer
    folder = registry.resolve_model(model)
    predictor = load_predictor(folder, called=model)
    real_class(predictor, model)  # said before the dataset is looked for
    data = open_stored(dataset or predictor.card.dataset)
    test = fit_and_test(predictor, data, split, rate, at)
    remark = too_fine(test)
    if out is not None:
        note = f"liveness: {rate} of at most {at:g} on the validation faces of {data.info.name}"
        keep_threshold(folder, out, test.tested.threshold, note)
    document = {
        "model": model,
        "out": out,
        "dataset": data.info.name,
        "fitted": {
            "on": "val",
            "rate": rate,
            "at_most": at,
            "threshold": test.tested.threshold,
            "remark": remark or None,
        },
        "val": document_of(test.val),
        split: document_of(test.tested),
    }
    title = f"{data.info.name}, threshold {test.tested.threshold:.4f}: {rate.upper()} ≤ {at:g} on val"
    rows = [*rows_of("val", test.val), *rows_of(split, test.tested)]
    view = table(title, ("split", "rate", "value", "95% interval", "wrong", "faces"), rows)
    emit(document, [view, *([remark] if remark else [])], as_json)


def document_of(liveness: Liveness) -> dict[str, object]:
    """The figures as JSON has them."""
    shares = {
        **{f"apcer {kind}": share for kind, share in liveness.apcer_by_type.items()},
        "bpcer": liveness.bpcer,
    }
    counted = {
        name: {"value": share.value, "interval": share.interval, "wrong": share.wrong, "num": share.num}
        for name, share in shares.items()
    }
    return {
        "apcer": liveness.apcer,
        "worst_type": liveness.worst_type,
        "acer": liveness.acer,
        "rates": counted,
    }


def rows_of(split: str, liveness: Liveness) -> list[tuple[object, ...]]:
    """The figures of a split, a row each."""

    def row(name: str, share: Share) -> tuple[object, ...]:
        low, high = share.interval
        return split, name, share.value, f"{low:.3f}–{high:.3f}", share.wrong, share.num

    rows = [row(f"APCER {kind}", share) for kind, share in liveness.apcer_by_type.items()]
    rows.append(row("BPCER", liveness.bpcer))
    rows.append((split, f"ACER, by {liveness.worst_type}", liveness.acer, "", "", ""))
    return rows
