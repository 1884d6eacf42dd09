"""What came of a run, for people: figures, and a page of samples to look at before anything is imported."""

import base64
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image as PILImage

from backend.prelabel.sources import Item
from backend.prelabel.state import FAILED, REDUCED, SKIPPED, Row
from model.overlay import draw
from model.types import Detection, Image

SAMPLES = 60
SIDE = 480  # pixels of a sample's longer side
FEW = 8  # reasons that are printed
SHOWN = 100  # failures and terms on the page


@dataclass
class Summary:
    """Counts over the rows of a run; grows with the words that were said, not with the images."""

    images: int = 0
    failed: int = 0
    empty: int = 0  # labelled, without any region
    reduced: int = 0  # labelled, seen in half their size for want of memory
    regions: int = 0
    terms: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)  # terms without a label
    scores: list[int] = field(default_factory=lambda: [0] * 10)  # of regions, in tenths
    reasons: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str]] = field(default_factory=list)  # the first ones
    files: Counter[str] = field(default_factory=Counter)  # what became of images' files, beside DEST's labels
    skipped: Counter[str] = field(default_factory=Counter)  # by reason; none of the images above
    several: int = 0  # images with several annotations, of which one was taken
    left_out: Counter[str] = field(default_factory=Counter)  # regions that are no objects, by reason
    left_out_of: dict[str, list[str]] = field(default_factory=dict)  # the first images of each reason

    @classmethod
    def of(cls, rows: Iterable[tuple[Item, Row]], skipped: Mapping[str, int] | None = None) -> "Summary":
        summary = cls(skipped=Counter(skipped))
        for item, row in rows:
            summary.add(item, row)
        return summary

    def add(self, item: Item, row: Row) -> None:
        if row["status"] == SKIPPED:
            self.skipped[row["reason"]] += 1
            return
        self.images += 1
        if row["status"] == FAILED:
            self.failed += 1
            self.reasons[row["reason"]] += 1
            if len(self.failures) < SHOWN:
                self.failures.append((item.key, row["reason"]))
            return
        kept = 0
        for term, label, score in row["found"]:
            self.terms[term] += 1
            if label is None:
                self.dropped[term] += 1
                continue
            kept += 1
            self.labels[label] += 1
            if score is not None:  # as of what people made
                self.scores[min(9, int(score * 10))] += 1
        self.regions += kept
        self.empty += not kept
        self.reduced += row.get(REDUCED, False)
        self.several += row.get("several", False)
        for reason, count in row.get("left_out", {}).items():
            self.left_out[reason] += count
            images = self.left_out_of.setdefault(reason, [])
            if len(images) < SHOWN:
                images.append(item.key)

    def as_json(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "failed": self.failed,
            "empty": self.empty,
            "reduced": self.reduced,
            "regions": self.regions,
            "terms": dict(self.terms.most_common()),
            "labels": dict(self.labels.most_common()),
            "dropped_terms": dict(self.dropped.most_common()),
            "scores": {f"{low / 10:.1f}": count for low, count in enumerate(self.scores)},
            "failures": dict(self.reasons.most_common(SHOWN)),
            "image_files": dict(self.files.most_common(SHOWN)),
            "skipped": dict(self.skipped.most_common()),
            "several": self.several,
            "left_out": {
                reason: {"regions": count, "images": self.left_out_of[reason]}
                for reason, count in self.left_out.most_common(SHOWN)
            },
        }

    def as_text(self) -> str:
        lines = [
            f"{self.images} images: {self.images - self.failed} labelled with {self.regions} regions, "
            f"{self.empty} of them empty; {self.failed} failed",
            f"labels: {_top(self.labels)}",
        ]
        if self.reduced:
            lines.append(
                f"seen in half their size, for want of memory: {self.reduced} images "
                "(small objects may be missing)"
            )
        if self.dropped:
            lines.append(f"terms without a label: {_top(self.dropped)}")
        if any(self.scores):
            lines.append("scores: " + "  ".join(f"{i / 10:.1f} {n}" for i, n in enumerate(self.scores) if n))
        if self.several:
            lines.append(f"several annotations, of which one was taken: {self.several}")
        for reason, count in self.left_out.most_common(FEW):
            images = self.left_out_of[reason]
            more = ", ..." if len(images) > FEW else ""
            lines.append(
                f"regions left out: {count} x {_plain(reason)} ({', '.join(map(_plain, images[:FEW]))}{more})"
            )
        for what, counts in (("failed", self.reasons), ("skipped", self.skipped)):
            lines += [f"{what}: {count} x {_plain(reason)}" for reason, count in counts.most_common(FEW)]
            if len(counts) > FEW:
                lines.append(f"{what}: {sum(counts.values())} in all, for {len(counts)} reasons")
        lines += [f"images {came}: {count}" for came, count in self.files.most_common(8)]
        return "\n".join(lines)


def thumbnail(image: Image, found: Sequence[Detection]) -> bytes:
    """A small JPEG of an image with its masks."""
    picture = PILImage.fromarray(draw(image, found))
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return file.getvalue()


def page(title: str, summary: Summary, samples: Iterable[tuple[str, Path]]) -> str:
    """One HTML file without any other: figures and the samples (caption, JPEG). All text is escaped."""
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
{summary.regions} regions{f", {summary.reduced} seen in half their size" if summary.reduced else ""}.</p>
<main>{figures}</main>
<section>{tables}<div><h2>Scores</h2><table>{bars}</table></div></section>
{f"<h2>Failed</h2><ul>{failures}</ul>" if failures else ""}
</body></html>
"""


def _top(counts: Counter[str], most: int = 15) -> str:
    shown = ", ".join(f"{_plain(name)} {count}" for name, count in counts.most_common(most))
    more = len(counts) - most
    return (shown or "none") + (f" and {more} more" if more > 0 else "")


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _table(title: str, counts: Counter[str]) -> str:
    if not counts:
        return ""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{count}</td></tr>" for name, count in counts.most_common(SHOWN)
    )
    return f"<div><h2>{escape(title)} ({len(counts)})</h2><table>{rows}</table></div>"


def _clip(text: str) -> str:
    return text if len(text) <= 200 else text[:197] + "..."
