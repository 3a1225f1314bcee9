"""What the figures of verification and recognition draw is what was computed."""

import numpy as np

from tasks.identification import dir_at_far, open_set_curve, rank
from tasks.verification import OperatingPoint, fit_threshold, roc
from tasks.verificationfigures import band_fars, distances_figure, open_set_figure, roc_figure
from tests.test_tasks_identification import open_set
from tests.test_tasks_verification import some_pairs


def test_the_roc_is_drawn_from_its_first_false_accept_with_the_fitted_points_on_it():
    distances, same = some_pairs()
    point = fit_threshold(*some_pairs(seed=1), 0.1)
    curve = roc(distances, same)
    fars = band_fars(curve.num_different)
    band = (fars, np.zeros(len(fars)), np.ones(len(fars)))
    [axes] = roc_figure(curve, "pairs", [point], band).axes
    line, _, dot = axes.lines
    assert line.get_ydata()[1:].tolist() == curve.tar[curve.far > 0].tolist()
    assert line.get_xdata()[1] == 1 / curve.num_different == fars[0]
    accepted = distances <= point.threshold
    assert dot.get_xdata()[0] == accepted[~same].mean() and dot.get_ydata()[0] == accepted[same].mean()


def test_the_histograms_hold_all_pairs_of_their_kind():
    distances, same = some_pairs()
    point = fit_threshold(distances, same, 0.1)
    [axes] = distances_figure(distances, same, "pairs", [point]).axes
    assert [round(float(patch.get_data().values.sum()), 9) for patch in axes.patches] == [1] * 4
    assert [line.get_xdata()[0] for line in axes.lines] == [point.threshold]


def test_the_open_set_figure_names_the_rates_that_its_probes_can_show():
    curve = open_set_curve(rank(*open_set()))
    [axes] = open_set_figure(curve, "probes", [0.001, 0.1]).axes
    rate, _ = dir_at_far(curve, 0.1)
    texts = [text.get_text() for text in axes.texts]
    assert f"{rate:.1%} at 0.1" in texts and not any("0.001" in text for text in texts)


def test_a_point_that_accepts_no_pair_of_two_people_is_whole_and_stays_on_the_axis():
    distances, same = some_pairs()
    strict = OperatingPoint(0.001, float(distances[same].min()), 0.0, 0.0, 1, 1)
    assert not (distances[~same] <= strict.threshold).any()
    [axes] = roc_figure(roc(distances, same), "pairs", [strict]).axes
    *_, dot = axes.lines
    assert not dot.get_clip_on() and dot.get_xdata()[0] == axes.get_xlim()[0]
    accepted = (distances[same] <= strict.threshold).mean()
    assert axes.get_ylim()[0] < accepted == dot.get_ydata()[0]
    assert "fitted for 0.001: no false accept" in [text.get_text() for text in axes.texts]


def test_rates_that_rest_on_few_false_accepts_are_named_outside_of_the_curve():
    distances, same = some_pairs()
    curve = open_set_curve(rank(*open_set()))
    for figure in (roc_figure(roc(distances, same), "pairs"), open_set_figure(curve, "probes", [0.1])):
        [axes], [legend] = figure.axes, figure.legends
        assert any(text.get_text().startswith("fewer than 30 ") for text in legend.get_texts())
        assert not any("fewer" in text.get_text() for text in axes.texts)
