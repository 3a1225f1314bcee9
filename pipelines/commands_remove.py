"""`./convoy data remove`: a dataset leaves the store; DVC's cache keeps its bytes."""

from pipelines.options import Json, Yes, confirm
from pipelines.render import ConsoleReporter, emit
from tasks import placing
from tasks.paths import store


def remove(name: str, /, *, yes: Yes = False, as_json: Json = False) -> None:
    """Remove a dataset's folder, pointer and list of versions; DVC's cache keeps the bytes.

    Parameters
    ----------
    name
        Name of a dataset; ./convoy data list shows them.
    yes
        Do not ask.
    """
    placing.require_removable(name)
    confirm(f"remove {name} from {store()}?", yes)
    removed = placing.remove(name, ConsoleReporter().note)
    back = f"git checkout COMMIT -- {' '.join(map(str, removed.files))}, then ./convoy data pull {name}"
    document = {
        "name": name, "digest": removed.digest, "cached": removed.is_cached, "unrecorded": removed.unrecorded,
        "damage": removed.damage, "get_back": back,
    }  # fmt: skip
    emit(document, removed_views(name, removed, back), as_json)


def removed_views(name: str, removed: placing.Removed, back: str) -> list[str]:
    """What went, and what is left of it where."""
    kept = (
        "DVC's cache keeps its bytes" if removed.is_cached else "DVC's cache lacks its bytes, or some of them"
    )
    said = f"removed {name} ({removed.digest}); {kept}. If git has its pointer, get it back: {back}"
    if not removed.unrecorded:
        return [said]
    what = f"was damaged ({removed.damage})" if removed.damage else "held what no version had"
    return [
        said,
        f"its folder {what}: those bytes are in DVC's cache as {removed.unrecorded}, and no pointer names them",
    ]
