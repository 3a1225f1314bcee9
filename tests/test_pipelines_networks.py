"""The layer table of a network as a picture."""

import pytest
import torch

from models.classification import ARCHITECTURES, arguments_of
from models.receptive import receptive_fields
from models.summary import layer_table
from pipelines.commands_networks import COLUMNS, draw_table


@pytest.mark.parametrize("name", ["lenet5", "vgg11"])
def test_headings_stand_above_their_columns_and_the_title_above_the_first(name: str) -> None:
    with torch.device("meta"):
        network = ARCHITECTURES[name](num_classes=10, channels=3, **arguments_of(name, 64))
    layers, fields = layer_table(network, (3, 64, 64)), receptive_fields(network, (3, 64, 64))
    totals = {"activation values": 1, "parameters": 2, "multiplications": 3}
    figure = draw_table(name, layers, fields, totals)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    (drawn,) = axes.tables
    for column in range(len(COLUMNS)):
        boxes = [drawn[row, column].get_text() for row in (0, 1, len(layers) + 1)]
        edges = [
            getattr(text.get_window_extent(), "x0" if column < 2 else "x1")
            for text in boxes
            if text.get_text()
        ]
        assert edges == pytest.approx([edges[0]] * len(edges), abs=1.5), COLUMNS[column]
    (title,) = [text for text in axes.get_children() if getattr(text, "get_text", str)() == name]
    assert title.get_window_extent().x0 == pytest.approx(
        drawn[0, 0].get_text().get_window_extent().x0, abs=1.5
    )
