"""Builders of annotations, as Label Studio 1.23.2 saves them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from backend.labelstudio import labeling_config, results
from model.types import Mask
from tests.support.detections import disc

WIDTH, HEIGHT = 80, 60
TAGS = {"brush": "Brush", "poly": "Polygon", "rect": "Rectangle", "ellipse": "Ellipse", "vector": "Vector"}
NAMES = '<Label value="Cat" alias="feline"/><Label value="Dog"/>'
CONFIG = (
    '<View><Image name="image" value="$image"/><Image name="other" value="$other"/>'
    + "".join(
        f'<{tag}Labels name="{name}" toName="image">{NAMES}</{tag}Labels>' for name, tag in TAGS.items()
    )
    + f'<BitmaskLabels name="bitmask" toName="image">{NAMES}</BitmaskLabels>'
    + f'<KeyPointLabels name="kp" toName="image" smart="true">{NAMES}</KeyPointLabels>'
    + f'<RectangleLabels name="prompt" toName="image" smart="true">{NAMES}</RectangleLabels></View>'
)
FREE = (
    '<View><Image name="image" value="$image"/><Brush name="brush" toName="image"/>'
    '<TextArea name="said" toName="image" perRegion="true"/>'
    '<Taxonomy name="kind" toName="image" perRegion="true"><Choice value="Animal"><Choice value="Dog"/>'
    "</Choice></Taxonomy></View>"
)
CAT = disc(30, 30, 20)
DOG = disc(50, 30, 15) & ~disc(50, 30, 6) | disc(70, 52, 5)  # over the cat, with a hole and a second part


def region(
    mask: Mask, control: str, *names: str, number: str = "", config: str = CONFIG
) -> list[dict[str, Any]]:
    """Return a region of these labels, as this server makes it. The default id depends on all arguments."""
    output = labeling_config.parse(config).output(control)
    assert output is not None
    number = number or f"{control}-{'-'.join(names)}-{int(mask.sum())}".replace(" ", "")
    return results.region(mask, control=output, labels=names, region_id=number, score=0.5)


def click(**more: Any) -> dict[str, Any]:
    """Return a click of a smart tool that was never accepted."""
    return {
        "id": "click", "type": "keypointlabels", "from_name": "kp", "to_name": "image", "is_positive": True,
        "original_width": WIDTH, "original_height": HEIGHT,
        "value": {"x": 5.0, "y": 5.0, "width": 0.5, "keypointlabels": ["feline"]},
        **more,
    }  # fmt: skip


def annotation(result: Sequence[Any], number: int = 1, at: str = "2026-01-01T00:00:01Z", **more: Any) -> Any:
    return {"id": number, "result": list(result), "was_cancelled": False, "ground_truth": False,
            "completed_by": number, "updated_at": at, **more}  # fmt: skip


def same(one: Any, other: Any) -> bool:
    return bool(np.array_equal(np.asarray(one, bool), np.asarray(other, bool)))
