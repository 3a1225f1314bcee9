"""The interval of a figure stands beside it, and nothing else is taken for one."""

from tasks.intervals import measured_on, metric_table, with_intervals


def test_an_interval_stands_beside_its_figure_wherever_its_ends_are() -> None:
    metrics = {"auc": 0.9647, "images_per_s": 286.0, "auc_low": 0.935, "rank1": 0.5, "auc_high": 0.98432}
    assert metric_table("Test", metrics) == (
        "Test",
        ("metric", "value", "95% interval"),
        [["auc", 0.9647, "0.935 to 0.9843"], ["images_per_s", 286.0, ""], ["rank1", 0.5, ""]],
    )


def test_what_is_only_called_like_an_end_stays_a_row() -> None:
    metrics = {"ap": 0.5, "ap_low": 0.4, "quality_low": 0.1, "quality_high": 0.9}
    title, columns, rows = metric_table("", metrics)
    assert (title, columns) == ("", ("metric", "value"))
    assert rows == [[name, value] for name, value in metrics.items()]


def test_only_tables_of_metrics_are_changed() -> None:
    views = ("By view", ["view", "auc"], [["single", 0.9]])
    assert with_intervals(views) is views
    rows = [["auc", 0.9], ["auc_low", 0.8], ["auc_high", 1.0]]
    assert with_intervals(("", ("metric", "value"), rows))[2] == [["auc", 0.9, "0.8 to 1"]]


def test_a_title_says_of_which_split_and_view_metrics_are_or_that_nothing_was_tested() -> None:
    assert measured_on("digits", "test", "mirror") == "digits, test split: the registered view is mirror"
    assert measured_on("digits", "test", "").startswith("digits, not tested: ")
