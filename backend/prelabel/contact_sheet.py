"""Make the contact sheet of a run: an HTML page with figures and samples, to check before an import."""

import base64
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from PIL import Image as PILImage

from backend.datasets.summary import SHOWN, Summary
from model.overlay import draw
from model.types import Detection, Image

SAMPLES = 60
SIDE = 480  # pixels of a sample's longer side


def thumbnail(image: Image, detections: Sequence[Detection]) -> bytes:
    """Return a small JPEG of an image with its masks drawn."""
    picture = PILImage.fromarray(draw(image, detections))
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return file.getvalue()


def page(title: str, summary: Summary, samples: Iterable[tuple[str, Path]]) -> str:
    """Return one self-contained HTML page of figures and samples (caption, JPEG). All text is escaped."""
    figures = "".join(
        f"<figure><img alt='' src='data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}'>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, path in samples
    )
    most = max(summary.scores) or 1
    bars = "".join(
        f"<tr><td>{low / 10:.1f}</td><td><meter max='{most}' value='{n}'></meter></td><td>{n}</td></tr>"
        for low, n in enumerate(summary.scores)
    )
    tables = _table("Labels", summary.labels) + _table("Terms without a label", summary.dropped)
    tables += _table("Skipped", summary.skipped)
    failures = "".join(f"<li>{escape(_clip(key))}: {escape(reason)}</li>" for key, reason in summary.failures)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title><style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2rem; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(280px, 1fr)); gap: 1rem; }}
figure {{ margin: 0; }} img {{ width: 100%; }} figcaption {{ overflow-wrap: anywhere; color: #555; }}
section {{ display: flex; flex-wrap: wrap; gap: 3rem; }} td {{ padding-right: 1rem; }}
</style></head><body>
<h1>{escape(title)}</h1>
<p>{summary.images} images, {summary.failed} failed, {summary.empty} without a region,
{summary.regions} regions{f", {summary.reduced} reduced to half their size" if summary.reduced else ""}.</p>
<main>{figures}</main>
<section>{tables}<div><h2>Scores</h2><table>{bars}</table></div></section>
{f"<h2>Failed</h2><ul>{failures}</ul>" if failures else ""}
</body></html>
"""


def _table(title: str, counts: Counter[str]) -> str:
    if not counts:
        return ""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{count}</td></tr>" for name, count in counts.most_common(SHOWN)
    )
    return f"<div><h2>{escape(title)} ({len(counts)})</h2><table>{rows}</table></div>"


def _clip(text: str) -> str:
    return text if len(text) <= 200 else text[:197] + "..."
