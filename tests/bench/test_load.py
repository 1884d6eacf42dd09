"""The load test itself, for a few seconds: that it finds nothing, and that it would."""

from pathlib import Path

import numpy as np
import pytest

from backend.labelstudio import labeling_config, results
from model.builtin.scenes import NAMES
from model.pipeline import VLSAM
from tests.bench.load import CONFIG, SPOTS, Expected, draw, draw_batch, is_answer, measure

BRUSH = labeling_config.parse(CONFIG).outputs[0]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_a_short_run() -> None:
    figures = measure(seconds=4, annotators=3, tasks=3, think=0.1, clicked=4)
    for phase in ("clicks", "clicks_beside_batch"):
        assert figures[phase]["clicks"] >= SPOTS
        assert (figures[phase]["lost"], figures[phase]["swapped"]) == (0, 0)
    assert figures["clicks_beside_batch"]["batch_tasks"] >= 3


def test_swapped_answers_would_be_seen(builtin: VLSAM, tmp_path: Path) -> None:
    one, other = draw(builtin, tmp_path, 2)
    for spot in range(SPOTS):
        (answer,) = results.region(
            one.masks[spot], control=BRUSH, labels=[NAMES[spot]], region_id="a", score=1, compact=True
        )
        assert is_answer(answer, one, spot)
        assert not is_answer(answer, other, spot)
        assert not is_answer(answer, one, (spot + 1) % SPOTS)


def test_swapped_predictions_would_be_seen(builtin: VLSAM, tmp_path: Path) -> None:
    (drawn,) = draw_batch(builtin, tmp_path, 1)
    assert drawn.masks
    number = results.prediction_id(drawn.content, "v1", "brush", "dog", 0)
    (region,) = results.region(drawn.masks[0][1], control=BRUSH, labels=["dog"], region_id=number, score=1)
    region["meta"] = {"vlsam": {"term": "dog"}}
    assert Expected("a", drawn.content, None).fits([region], "v1")
    assert not Expected("a", "another", None).fits([region], "v1")
    assert Expected("a", drawn.content, (("dog", drawn.masks[0][1]),)).fits([region], "v1")
    assert not Expected("a", drawn.content, (("dog", np.ones_like(drawn.masks[0][1])),)).fits([region], "v1")
