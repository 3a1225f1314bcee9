"""The gate: may a challenger take the champion's place? A verdict from what both made of the same samples.

    promote        better on a primary metric, not worse than its margin on any other, nor on any guarded slice, and
                   within the limits of latency and memory
    hold           something speaks against it: it is worse somewhere, too slow, too large, or any gain is too small
    inconclusive   the samples could not show either

"Not worse" is non-inferiority: the bound of the loss lies within the margin, so that a small split cannot pass for a
good one. Promotion asks for all of these at once (an intersection-union test: Berger 1982, Technometrics 24), so each
slice is tested at the full `alpha`: the chance to promote a challenger that is inferior on any one of them is at most
`alpha`, however many there are. Where the question is the other way round, is it better on one of several metrics,
worse on one of many slices, the correction is made (Bonferroni; Holm). The pairing of each family: tasks/gate*.py.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from data.parameters import Parameters
from tasks.pairing import Guarded, Paired, Tested

Decision = Literal["promote", "hold", "inconclusive"]
MAX_NAMED = 4  # slices in a sentence


class Incomparable(Exception):
    """Two models that do not answer the same question, so that no samples can tell which is better."""


class MetricRule(Parameters):
    """What a metric counts for."""

    margin: float = Field(gt=0, description="a loss smaller than this does not matter")
    primary: bool = Field(description="whether a gain in it is a reason to promote")


class FamilyRules(Parameters):
    """What is compared of one family."""

    metrics: dict[str, MetricRule] = Field(min_length=1, description="metrics and their rules")
    slice_margin: float = Field(gt=0, description="a loss on a slice smaller than this does not matter")
    slice_fewest: int = Field(
        ge=1,
        description="samples from which on a slice must be shown not to lose; smaller ones only object to harm shown",
    )

    @model_validator(mode="after")
    def _has_a_primary(self) -> Self:
        if not any(rule.primary for rule in self.metrics.values()):
            raise ValueError("metrics must name a primary one: nothing could be promoted otherwise")
        return self


class GateConfig(Parameters):
    """The section `gate` of params.yaml."""

    alpha: float = Field(gt=0, lt=0.5, description="chance of an error that a test may make")
    power: float = Field(gt=0.5, lt=1, description="chance to find the gain that is called detectable")
    num_draws: int = Field(ge=200, description="draws of a bootstrap")
    seed: int = Field(ge=0, description="of the draws")
    latency_ratio: float = Field(
        ge=0, description="most times the champion's latency that the challenger may take; 0: no limit"
    )
    latency_floor_ms: float = Field(ge=0, description="a latency of at most this is never too slow")
    memory_ratio: float = Field(
        ge=0, description="most times the champion's memory that the challenger may take; 0: no limit"
    )
    memory_floor_mb: float = Field(ge=0, description="memory, in MiB, of at most this is never too much")
    cost_rounds: int = Field(ge=3, description="answers of each model that are timed, in turns")
    most_uses: int = Field(
        ge=0,
        description="comparisons on one version's test split, from which on nothing is promoted by it; 0: no limit",
    )
    approval: Literal["ask", "none"] = Field(description="whether a person is asked before a promotion")
    approval_timeout_h: float = Field(
        gt=0, description="hours to wait for the answer; then the verdict is hold"
    )
    families: dict[str, FamilyRules] = Field(description="what is compared of each family")

    def rules(self, family: str) -> FamilyRules:
        """What is compared of a family; raises ValueError where nothing is said of it."""
        if family not in self.families:
            raise ValueError(
                f"the gate has no rules for {family!r}: params.yaml's gate.families has "
                f"{', '.join(self.families)}; add its metrics there"
            )
        return self.families[family]


@dataclass(frozen=True)
class Cost:
    """What one answer of a model takes, measured in turns with the other model's."""

    latency_ms: float  # median of single samples
    memory_mb: float | None  # weights and the peak growth of a batch, in MiB; None: not measurable here
    unmeasured: str = ""  # why not


@dataclass(frozen=True)
class Verdict:
    """What the gate says, and what it rests on."""

    decision: Decision
    reasons: tuple[str, ...]  # plain sentences, the deciding ones first

    @property
    def sentence(self) -> str:
        """One line."""
        return f"{self.decision}: {self.reasons[0]}"


def metric_alphas(rules: dict[str, MetricRule], known: Sequence[str], config: GateConfig) -> dict[str, float]:
    """What error each metric's test may make: primary ones share `alpha`, since a gain in any of them promotes.

    Raises ValueError for a metric that is not `known`.
    """
    unknown = [name for name in rules if name not in known]
    if unknown:
        raise ValueError(f"the gate knows no metric {unknown[0]!r}; known here: {', '.join(known)}")
    primary = sum(rule.primary for rule in rules.values())
    return {name: config.alpha / primary if rule.primary else config.alpha for name, rule in rules.items()}


def decide(
    paired: Paired, costs: tuple[Cost, Cost], uses: int, config: GateConfig, rules: FamilyRules
) -> Verdict:
    """The verdict over a challenger; `costs` of champion and challenger, `uses` of the split, with this one."""
    against = [*losses_shown(paired), *limits_broken(costs, config)]
    unclear = unproven(paired, config) + unmeasured(costs, config) + worn_out(uses, config)
    gains = [test for test in paired.metrics if test.primary and test.better]
    about = [*power_sentences(paired, config), *slice_sentences(paired, rules), use_sentence(uses)]
    if paired.same:
        same = f"both models give the same outputs for all {paired.num_samples:,} {paired.unit}"
        return Verdict("hold", (same, *against, *about))
    won = [gain_sentence(test) for test in gains]
    if against:
        return Verdict("hold", (*against, *won, *about))
    if gains and not unclear:
        return Verdict("promote", (*won, *kept_sentences(paired, config), *cost_sentences(costs), *about))
    primary = [test for test in paired.metrics if test.primary]
    if not gains and (lost := [test for test in primary if test.worse]):
        return Verdict("hold", (*map(loss_sentence, lost), *unclear, *about))
    small = [test for test in primary if test.high < test.margin]
    if not gains and len(small) == len(primary):
        return Verdict("hold", (*map(too_small_sentence, small), *unclear, *about))
    open_questions = [undecided_sentence(test) for test in primary] if not gains else []
    return Verdict("inconclusive", (*open_questions, *unclear, *won, *about))


def losses_shown(paired: Paired) -> list[str]:
    """What the challenger is shown to be worse at by more than its margin, and slices that it harms."""
    metrics = [
        f"{test.name} gets worse by more than its margin {test.margin:g}, {change(test)}"
        for test in paired.metrics
        if test.worse and test.high < -test.margin
    ]
    slices = [
        f"{paired.metric} on {named(each)} gets worse, from {each.champion:.4f} to {each.challenger:.4f}"
        for each in paired.slices
        if each.worse
    ]
    return metrics + slices


def unproven(paired: Paired, config: GateConfig) -> list[str]:
    """Metrics and guarded slices of which nothing shows that they do not lose."""
    metrics = [
        f"{test.name} may lose more than its margin {test.margin:g} ({spread(test)})"
        for test in paired.metrics
        if not test.non_inferior
    ]
    open_slices = [each for each in paired.slices if each.enough and not each.non_inferior]
    if not open_slices:
        return metrics
    worst = sorted(open_slices, key=lambda each: each.low)[:MAX_NAMED]
    listed = "; ".join(f"{named(each)}: down to {each.low:+.4f}" for each in worst)
    more = f"; and {len(open_slices) - len(worst)} more" if len(open_slices) > len(worst) else ""
    return [
        *metrics,
        f"{paired.metric} may lose more than {open_slices[0].margin:g} on {len(open_slices)} of the guarded slices "
        f"({listed}{more}), at confidence {1 - config.alpha:g}",
    ]


def limits_broken(costs: tuple[Cost, Cost], config: GateConfig) -> list[str]:
    """Limits of latency and memory that the challenger breaks."""
    champion, challenger = costs
    broken = []
    limit = max(champion.latency_ms * config.latency_ratio, config.latency_floor_ms)
    if config.latency_ratio and challenger.latency_ms > limit:
        broken.append(
            f"an answer takes {challenger.latency_ms:.2f} ms, the champion's {champion.latency_ms:.2f} ms: more than "
            f"the limit of {limit:.2f} ms"
        )
    if config.memory_ratio and champion.memory_mb is not None and challenger.memory_mb is not None:
        limit = max(champion.memory_mb * config.memory_ratio, config.memory_floor_mb)
        if challenger.memory_mb > limit:
            broken.append(
                f"it needs {challenger.memory_mb:.0f} MiB, the champion {champion.memory_mb:.0f} MiB: more than the "
                f"limit of {limit:.0f} MiB"
            )
    return broken


def unmeasured(costs: tuple[Cost, Cost], config: GateConfig) -> list[str]:
    """A limit that nothing could be measured against."""
    missing = next((cost.unmeasured for cost in costs if cost.memory_mb is None), "")
    if not config.memory_ratio or not any(cost.memory_mb is None for cost in costs):
        return []
    return [f"the limit of memory could not be checked: {missing}; gate.memory_ratio=0 takes it away"]


def worn_out(uses: int, config: GateConfig) -> list[str]:
    """A test split that has decided too often."""
    if not config.most_uses or uses <= config.most_uses:
        return []
    return [
        f"this test split has decided {uses - 1} times before, and gate.most_uses is {config.most_uses}: what wins "
        "on it may have been chosen by its accidents; add new test samples"
    ]


def gain_sentence(test: Tested) -> str:
    return f"{test.name} improves {change(test)}"


def loss_sentence(test: Tested) -> str:
    return f"{test.name} gets worse {change(test)}"


def too_small_sentence(test: Tested) -> str:
    return f"any gain in {test.name} is smaller than {test.margin:g}: {change(test)}"


def undecided_sentence(test: Tested) -> str:
    return f"{test.name} goes from {test.champion:.4f} to {test.challenger:.4f}, which may be chance ({spread(test)})"


def change(test: Tested) -> str:
    return f"from {test.champion:.4f} to {test.challenger:.4f} ({spread(test)})"


def spread(test: Tested) -> str:
    """The gain with its interval, and the exact test."""
    exact = f", {test.test}: p = {test.p_value:.3g}" if test.p_value is not None else f", {test.test}"
    return f"gain {test.gain:+.4f}, {test.low:+.4f} to {test.high:+.4f}{exact}"


def kept_sentences(paired: Paired, config: GateConfig) -> list[str]:
    """What a promotion rests on beside the gain."""
    guarded = [each for each in paired.slices if each.enough]
    others = [test.name for test in paired.metrics if not test.better]
    kept = [f"no loss beyond its margin in {', '.join(others)}"] if others else []
    if guarded:
        kept.append(
            f"no loss of {guarded[0].margin:g} or more on any of {len(guarded)} guarded slices, at confidence "
            f"{1 - config.alpha:g} each"
        )
    return kept


def cost_sentences(costs: tuple[Cost, Cost]) -> list[str]:
    """What an answer of each takes."""
    champion, challenger = costs
    said = f"an answer takes {challenger.latency_ms:.2f} ms, the champion's {champion.latency_ms:.2f} ms"
    if champion.memory_mb is not None and challenger.memory_mb is not None:
        said += f"; memory {challenger.memory_mb:.0f} MiB and {champion.memory_mb:.0f} MiB"
    return [said]


def power_sentences(paired: Paired, config: GateConfig) -> list[str]:
    """The smallest differences that the sample could have shown."""
    known = [test for test in paired.metrics if test.primary and not math.isnan(test.detectable)]
    if not known:
        return [
            f"{paired.num_samples:,} {paired.unit} could not have shown any gain: there is nothing to vary"
        ]
    listed = ", ".join(f"{test.name} {test.detectable:.4f}" for test in known)
    return [
        f"the smallest gain that {paired.num_samples:,} {paired.unit} show with a chance of {config.power:.0%}: "
        f"{listed}",
        *paired.notes,
    ]


def slice_sentences(paired: Paired, rules: FamilyRules) -> list[str]:
    """Slices that were too small to be guarded by a bound."""
    small = [each for each in paired.slices if not each.enough]
    if not small:
        return []
    return [
        f"{len(small)} slices of fewer than {rules.slice_fewest} samples could only have objected to harm that is shown"
    ]


def use_sentence(uses: int) -> str:
    return (
        "this is the first comparison on this version's test split"
        if uses == 1
        else f"this version's test split has been used for {uses} comparisons, this one included"
    )


def named(each: Guarded) -> str:
    return f"{each.kind} {each.name!r} (n = {each.num_samples:,})"


def standing(test: Tested) -> str:
    """A metric's outcome in a word or two."""
    if test.better or test.worse:
        return "better" if test.better else "worse"
    return "not worse" if test.non_inferior else "open"


def slice_standing(each: Guarded) -> str:
    """A slice's outcome in a word or two."""
    if each.worse:
        return "worse"
    if not each.enough:
        return "too small to guard"
    return "not worse" if each.non_inferior else "open"


def numbers(value: Any) -> str:
    """A value for a person: four digits, and nothing for what is not known."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def document(paired: Paired, costs: tuple[Cost, Cost], verdict: Verdict, uses: int) -> dict[str, Any]:
    """All of it for a program."""
    return {
        "decision": verdict.decision,
        "reasons": list(verdict.reasons),
        "uses": uses,
        "num_samples": paired.num_samples,
        "unit": paired.unit,
        "same_outputs": paired.same,
        "metrics": [asdict(test) for test in paired.metrics],
        "slices": [asdict(each) for each in paired.slices],
        "cost": {"champion": asdict(costs[0]), "challenger": asdict(costs[1])},
    }
