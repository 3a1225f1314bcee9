"""Why a model is trained again, or why not: its data and parameters against those of the champion."""

from collections.abc import Mapping

from data.difference import compare
from tasks import ledger, versioning, versions
from tasks.lineage import Lineage
from tasks.recordstore import connect
from tasks.retrainings import Champion, champion_of, judged_before

MAX_NAMED = 5  # parameters in a sentence


def why_skip(name: str, family: str, champion: Champion | None, lineage: Lineage) -> str:
    """Why there is nothing to train; "" where there is: other data or parameters, no champion, or data of no digest."""
    if champion is None or not lineage.dvc_digest:
        return ""
    same = champion.digest == lineage.dvc_digest and champion.params_sha256 == lineage.params_sha256
    what = f"the same data ({short(lineage.dvc_digest)}) by the same parameters ({lineage.params_sha256[:8]})"
    if same:
        code = other_code(champion, lineage)
        return f"version {champion.version}, the champion of {name}, was trained on {what}{code}"
    if refused := rolled_back(name, lineage):
        return f"{refused}, and it was trained on {what}, which would make it again"
    before = judged_before(name, family, lineage, champion.version)
    if before is None:
        return ""
    return (
        f"the run {before.key} was trained on {what}, and was {before.outcome} against the same champion, version "
        f"{champion.version}: {before.reason}"
    )


def rolled_back(name: str, lineage: Lineage) -> str:
    """The version of the same data and parameters that somebody went back from, and why; "" if there is none."""
    for move in reversed(ledger.history(name)):
        left = move.before.get("champion")
        if move.action == "rollback" and left is not None:
            made = champion_of(name, left)
            if (made.digest, made.params_sha256) == (lineage.dvc_digest, lineage.params_sha256):
                return f"version {left} was rolled back by {move.who} because: {move.because}"
    return ""


def other_code(champion: Champion, lineage: Lineage) -> str:
    """A remark where the code has changed since, which alone is no reason to train."""
    if not champion.commit or champion.commit == lineage.git_commit:
        return ""
    return (
        f"; only the code is another ({champion.commit[:8]} then, {lineage.git_commit[:8] or 'unknown'} now)"
    )


def why_train(
    name: str, champion: Champion | None, lineage: Lineage, dataset: str, parameters: Mapping[str, str]
) -> str:
    """What has changed since the champion, in a sentence; `parameters` are those of the new run, by dotted names."""
    if champion is None:
        return f"{name} has no champion yet"
    if not lineage.dvc_digest:
        return f"DVC does not track {dataset}, so nobody knows whether its data changed"
    reasons = []
    if champion.digest != lineage.dvc_digest:
        changed = f"the data changed: {short(champion.digest)} → {short(lineage.dvc_digest)}"
        reasons.append(changed + what_changed(champion.digest, lineage.dvc_digest))
    if champion.params_sha256 != lineage.params_sha256:
        reasons.append(f"parameters differ: {differing(champion, parameters)}")
    return "; ".join(reasons)


def what_changed(before: str, after: str) -> str:
    """How many samples were added, removed and so on between two versions, where the earlier one is here."""
    if not before or not all(map(versioning.is_cached, (before, after))):
        return ""
    with versions.opened(before) as earlier, versions.opened(after) as later:
        difference, _changes = compare(earlier, later, ("before", "after"))
    counts = [f"{number:,} {kind}" for kind, number in difference.counts.items() if number]
    return f" ({', '.join(counts)})" if counts else ""


def differing(champion: Champion, parameters: Mapping[str, str]) -> str:
    """`optim.lr 0.1 → 0.05`, and so on, against the parameters in the champion's record."""
    had = connect().get_run(champion.run_id).data.params if champion.run_id else {}
    names = [key for key in sorted({*had, *parameters}) if had.get(key) != parameters.get(key)]
    listed = ", ".join(f"{key} {had.get(key, '-')} → {parameters.get(key, '-')}" for key in names[:MAX_NAMED])
    return listed + (f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else "")


def short(digest: str) -> str:
    return digest[:8] or "untracked"
