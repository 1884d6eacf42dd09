from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from backend.datasets.items import Item
from backend.datasets.run_state import Row
from backend.datasets.summary import Summary
from backend.prelabel import contact_sheet
from tests.support.detections import detection, disc

HOSTILE = "<script>alert(1)</script>\"'&"


def summary() -> Summary:
    rows: list[Row] = [
        {"status": "done", "found": [["cat", "Cat", 0.95], [HOSTILE, None, 0.5], ["dog", "Dog", 1.0]]},
        {"status": "done", "found": [["cat", None, 0.1]], "reduced": True},
        {"status": "failed", "reason": HOSTILE},
    ]
    return Summary.of((Item(HOSTILE, "", {}), row) for row in rows)


def test_the_page_is_one_file_and_escapes_all_text(tmp_path: Path) -> None:
    image = np.zeros((600, 900, 3), np.uint8)
    found = [detection(HOSTILE, disc(400, 300, 90, width=900, height=600))]
    picture = tmp_path / "x.jpg"
    picture.write_bytes(contact_sheet.thumbnail(image, found))
    with Pillow.open(picture) as small:
        assert (small.format, small.size) == ("JPEG", (480, 320))
    page = contact_sheet.page(HOSTILE, summary(), [(HOSTILE, picture)])
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 6  # title twice, caption, dropped, failed: key and reason
    assert "src='data:image/jpeg;base64,/9j/" in page
    assert "http" not in page


def test_the_page_lists_what_was_skipped() -> None:
    assert "reason 7" in contact_sheet.page("x", Summary(skipped=Counter({"reason 7": 1})), [])
