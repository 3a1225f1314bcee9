"""The gate's verdict: who is promoted, who is held, and what could not be told."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.gate import Cost, GateConfig, Verdict, decide, document
from tasks.gateclassification import pair
from tasks.gatepage import gate_markdown, gate_page
from tasks.pairing import Paired
from tasks.report import Report
from tests.pairs import CHEAP, GATE, answers, gate_config, paired_dataset, report, two_models, with_groups


def compare(champion: Report, challenger: Report, config: GateConfig | None = None) -> Paired:
    return pair(champion, challenger, paired_dataset(), "test", config or gate_config())


def judge(
    champion: Report,
    challenger: Report,
    costs: tuple[Cost, Cost] = (CHEAP, CHEAP),
    uses: int = 1,
    **changes: Any,
) -> Verdict:
    config = gate_config(**changes)
    return decide(compare(champion, challenger, config), costs, uses, config, config.rules("classification"))


@given(st.integers(10, 120), st.integers(0, 2**31))
@settings(max_examples=15)
def test_a_model_never_replaces_itself(num: int, seed: int) -> None:
    first, _ = two_models(np.random.default_rng(seed), num, 0.7, 0.7)
    verdict = judge(first, first)
    assert verdict.decision == "hold"
    assert verdict.reasons[0] == f"both models give the same outputs for all {num} samples"


def test_a_clearly_better_model_is_promoted_and_the_other_way_round_is_held() -> None:
    worse, better = two_models(np.random.default_rng(0), 1500, 0.80, 0.90)
    verdict = judge(worse, better)
    assert verdict.decision == "promote", verdict.reasons
    assert verdict.reasons[0].startswith("accuracy improves from 0.")
    back = judge(better, worse)
    assert back.decision == "hold"
    assert back.reasons[0].startswith("accuracy gets worse by more than its margin 0.02")


def test_two_equally_good_models_are_promoted_no_more_often_than_alpha() -> None:
    generator = np.random.default_rng(0)
    verdicts = [judge(*two_models(generator, 240, 0.85, 0.85)).decision for _ in range(80)]
    assert verdicts.count("promote") <= 0.05 * 80
    assert verdicts.count("inconclusive") > 50, "240 samples cannot tell models apart that differ by chance"


def test_what_so_many_samples_could_have_shown_is_said() -> None:
    first, second = two_models(np.random.default_rng(1), 240, 0.85, 0.85)
    verdict = judge(first, second)
    assert verdict.decision == "inconclusive"
    [said] = [
        reason for reason in verdict.reasons if reason.startswith("the smallest gain that 240 samples show")
    ]
    detectable = float(said.rpartition("accuracy ")[2].partition(",")[0])
    discordant = float((first.predicted != second.predicted).mean())
    assert detectable == pytest.approx(2.8 * (discordant / 240) ** 0.5, rel=0.2)


def test_the_detectable_gain_is_promoted_as_often_as_it_says() -> None:
    """With one primary metric, no slices to guard, and margins that do not bind: the power of the test alone."""
    rules = {
        "metrics": {"accuracy": {"margin": 1, "primary": True}},
        "slice_margin": 1,
        "slice_fewest": 10**6,
    }
    config = gate_config(families={"classification": rules})
    generator = np.random.default_rng(0)
    labels = np.arange(300) % 3
    paired = [compare(*two_models(generator, 300, 0.8, 0.8), config).metrics[0] for _ in range(20)]
    gain = float(np.mean([test.detectable for test in paired]))
    discordant = 0.5 * 2 * 0.8 * 0.2  # half of the samples are of their own for each model
    promoted = 0
    for _ in range(120):
        kind = generator.choice(3, 300, p=[(discordant + gain) / 2, (discordant - gain) / 2, 1 - discordant])
        first, second = report(labels, answers(labels, kind != 0)), report(labels, answers(labels, kind != 1))
        verdict = decide(
            compare(first, second, config), (CHEAP, CHEAP), 1, config, config.rules("classification")
        )
        promoted += verdict.decision == "promote"
    assert promoted / 120 == pytest.approx(0.8, abs=0.1)


def test_a_class_that_is_harmed_holds_a_model_that_is_better_on_the_whole() -> None:
    labels = np.arange(1500) % 3
    champion = np.random.default_rng(0).random(1500) < 0.8
    challenger = champion | (labels < 2)  # perfect on two classes …
    challenger[np.flatnonzero((labels == 2) & champion)[:60]] = False  # … and worse on the third
    verdict = judge(report(labels, answers(labels, champion)), report(labels, answers(labels, challenger)))
    assert verdict.decision == "hold"
    assert verdict.reasons[0].startswith("accuracy on class 'ship' (n = 500) gets worse, from ")
    assert any(reason.startswith("accuracy improves") for reason in verdict.reasons)


def test_a_guarded_class_that_may_be_harmed_leaves_it_open() -> None:
    labels = np.arange(390) % 3
    champion = np.arange(390) % 10 > 1
    challenger = champion | (labels < 2)
    lost = np.flatnonzero((labels == 2) & champion)[:4]
    challenger[lost] = False  # 4 of 130: within the margin of 0.05, and not shown to be
    verdict = judge(report(labels, answers(labels, champion)), report(labels, answers(labels, challenger)))
    assert verdict.decision == "inconclusive"
    assert (
        "accuracy may lose more than 0.05 on 1 of the guarded slices (class 'ship' (n = 130)"
        in verdict.reasons[0]
    )
    assert judge(
        report(labels, answers(labels, champion)), report(labels, answers(labels, challenger)),
        families={"classification": {**GATE["families"]["classification"], "slice_margin": 0.2}},
    ).decision == "promote"  # fmt: skip


@pytest.mark.parametrize(
    ("cost", "says"),
    [
        (Cost(3.1, 10.0), "an answer takes 3.10 ms, the champion's 2.00 ms: more than the limit of 3.00 ms"),
        (Cost(2.0, 16.0), "it needs 16 MiB, the champion 10 MiB: more than the limit of 15 MiB"),
    ],
)
def test_a_better_model_that_costs_too_much_is_held(cost: Cost, says: str) -> None:
    worse, better = two_models(np.random.default_rng(0), 1500, 0.80, 0.90)
    verdict = judge(worse, better, (CHEAP, cost))
    assert (verdict.decision, verdict.reasons[0]) == ("hold", says)
    assert judge(worse, better, (CHEAP, cost), latency_ratio=0, memory_ratio=0).decision == "promote"
    assert judge(worse, better, (CHEAP, cost), latency_floor_ms=5, memory_floor_mb=20).decision == "promote"


def test_a_limit_that_cannot_be_measured_is_not_met() -> None:
    worse, better = two_models(np.random.default_rng(0), 1500, 0.80, 0.90)
    costs = (CHEAP, Cost(2.0, None, "peak memory is measured on Linux with glibc only"))
    verdict = judge(worse, better, costs)
    assert verdict.decision == "inconclusive"
    assert verdict.reasons[0].startswith(
        "the limit of memory could not be checked: peak memory is measured on"
    )
    assert judge(worse, better, costs, memory_ratio=0).decision == "promote"


def test_a_test_split_that_has_decided_too_often_promotes_nobody() -> None:
    worse, better = two_models(np.random.default_rng(0), 1500, 0.80, 0.90)
    assert judge(worse, better, uses=20, most_uses=20).decision == "promote"
    verdict = judge(worse, better, uses=21, most_uses=20)
    assert verdict.decision == "inconclusive"
    assert verdict.reasons[0].startswith("this test split has decided 20 times before")
    assert (
        verdict.reasons[-1] == "this version's test split has been used for 21 comparisons, this one included"
    )


def test_a_gain_that_must_be_smaller_than_the_margin_is_held() -> None:
    labels = np.arange(3000) % 3
    champion = np.arange(3000) % 10 > 0
    challenger = champion.copy()
    challenger[np.flatnonzero(~champion)[:3]] = True
    verdict = judge(report(labels, answers(labels, champion)), report(labels, answers(labels, challenger)))
    assert verdict.decision == "hold"
    assert verdict.reasons[0].startswith("any gain in accuracy is smaller than 0.02: from 0.9000 to 0.9010")


def test_samples_that_share_a_group_count_together() -> None:
    """30 patients with 40 samples each, alike: what McNemar's test takes for 1,200 is 30."""
    generator = np.random.default_rng(3)
    labels = np.arange(1200) % 3
    patient = np.arange(1200) // 40
    champion = np.repeat(generator.random(30) < 0.7, 40)
    challenger = np.repeat(generator.random(30) < 0.8, 40)
    groups = [f"patient-{number:02}" for number in patient]
    first, second = report(labels, answers(labels, champion)), report(labels, answers(labels, challenger))
    alone = compare(first, second).metrics[0]
    together = compare(with_groups(first, groups), with_groups(second, groups)).metrics[0]
    assert alone.p_value is not None and alone.p_value < 1e-3
    assert together.high - together.low > 3 * (alone.high - alone.low)
    assert not together.better
    assert (
        "1,200 samples share a group with others, and groups are drawn whole"
        in compare(with_groups(first, groups), with_groups(second, groups)).notes
    )


def test_only_models_that_looked_at_the_same_samples_are_compared() -> None:
    first, second = two_models(np.random.default_rng(0), 30, 0.8, 0.9)
    fewer = replace(second, rows=second.rows.slice(1))
    with pytest.raises(ValueError, match="not looked at on the same test samples of pets"):
        compare(first, fewer)


def test_a_rule_for_what_is_not_measured_and_a_family_without_rules_are_refused() -> None:
    first, second = two_models(np.random.default_rng(0), 30, 0.8, 0.9)
    rules = {"metrics": {"acuracy": {"margin": 1, "primary": True}}, "slice_margin": 1, "slice_fewest": 1}
    with pytest.raises(
        ValueError, match="the gate knows no metric 'acuracy'; known here: accuracy, macro_f1"
    ):
        compare(first, second, gate_config(families={"classification": rules}))
    with pytest.raises(
        ValueError, match=r"the gate has no rules for 'sounds': .* has classification, detection"
    ):
        gate_config().rules("sounds")
    with pytest.raises(ValueError, match="must name a primary one"):
        gate_config(families={"faces": {**rules, "metrics": {"auc": {"margin": 1, "primary": False}}}})


def test_the_evidence_has_every_number_and_no_markup_of_others() -> None:
    config = gate_config()
    worse, better = two_models(np.random.default_rng(0), 600, 0.80, 0.90)
    classes = ("<b>cat</b>", "dog|cat", "ship")
    paired = compare(replace(worse, classes=classes), replace(better, classes=classes), config)
    verdict = decide(paired, (CHEAP, CHEAP), 3, config, config.rules("classification"))
    about = {"model": "classifier-pets", "champion": 1, "challenger": 2, "dataset": "pets"}
    page = gate_page(about, paired, (CHEAP, CHEAP), verdict, config)
    text = gate_markdown(about, paired, (CHEAP, CHEAP), verdict)
    assert "May version 2 replace version 1 of classifier-pets?" in page
    assert "&lt;b&gt;cat&lt;/b&gt;" in page and "<b>cat</b>" not in page + text
    for test in paired.metrics:
        assert f"{test.gain:+.4f}" in page and f"{test.gain:+.4f}" in text
    values = document(paired, (CHEAP, CHEAP), verdict, 3)
    assert values["decision"] == verdict.decision and values["uses"] == 3
    assert [row["name"] for row in values["slices"]] == [each.name for each in paired.slices]
    assert not any(math.isnan(row["gain"]) for row in values["metrics"])
