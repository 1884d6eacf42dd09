"""Finish a run: write DEST, and count its rows in a summary, as text and as JSON."""

import heapq
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backend.datasets.items import Item
from backend.datasets.objects import Files, Finished
from backend.datasets.run_state import FAILED, REDUCED, SKIPPED, Row, State, write_text
from backend.labelstudio.labeling_config import Control
from backend.telemetry.logs import printable

FEW = 8  # reasons that are printed
SHOWN = 100  # failures, terms and images that are listed


@dataclass
class Summary:
    """Counts over the rows of a run. Its size depends on the number of terms, not of images."""

    images: int = 0
    failed: int = 0
    empty: int = 0  # labelled, without any region
    reduced: int = 0  # annotated in half their size, after memory ran out
    regions: int = 0
    terms: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)  # terms without a label
    scores: list[int] = field(default_factory=lambda: [0] * 10)  # of regions, in tenths
    reasons: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str]] = field(default_factory=list)  # the first ones: key, reason
    files: Counter[str] = field(default_factory=Counter)  # results of linking or copying images
    skipped: Counter[str] = field(default_factory=Counter)  # by reason; not among `images`
    several: int = 0  # images with several annotations, one of which was used
    left_out: Counter[str] = field(default_factory=Counter)  # regions without an object, by reason
    left_out_of: dict[str, list[str]] = field(default_factory=dict)  # the first images for each reason

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
            if score is not None:  # people's objects have none
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
                f"reduced to half their size to save memory: {self.reduced} images "
                "(small objects may be missing)"
            )
        if self.dropped:
            lines.append(f"terms without a label: {_top(self.dropped)}")
        if any(self.scores):
            lines.append("scores: " + "  ".join(f"{i / 10:.1f} {n}" for i, n in enumerate(self.scores) if n))
        if self.several:
            lines.append(f"several annotations, of which one was taken: {self.several}")
        for reason, count in self.left_out.most_common(FEW):
            images = [*map(printable, self.left_out_of[reason][:FEW]), "..."]
            shown = ", ".join(images[: len(self.left_out_of[reason])])
            lines.append(f"regions left out: {count} x {printable(reason)} ({shown})")
        for what, counts in (("failed", self.reasons), ("skipped", self.skipped)):
            lines += [f"{what}: {count} x {printable(reason)}" for reason, count in counts.most_common(FEW)]
            if len(counts) > FEW:
                lines.append(f"{what}: {sum(counts.values())} in all, for {len(counts)} reasons")
        lines += [f"images {came}: {count}" for came, count in self.files.most_common(8)]
        return "\n".join(lines)


def finish(
    states: Sequence[State],
    folder: Path,
    controls: Iterable[Control],
    write_rows: Callable[[Finished, Sequence[str]], Files] | None,
) -> Summary:
    """Call `write_rows`, if any, to write DEST. Write, print and return the summary of all rows."""

    def rows() -> Iterator[tuple[Item, Row]]:
        merged = heapq.merge(*(state.rows() for state in states), key=lambda entry: entry[0])
        return ((item, row) for _, item, row in merged)

    # Each shard lists the whole source, and skips the same files.
    summary = Summary.of(rows(), states[0].skipped)
    if write_rows is not None:
        configured = [label.value for control in controls for label in control.labels]
        # Other labels come from the data of tasks, from an earlier config, or are terms.
        names = list(dict.fromkeys([*configured, *sorted(summary.labels)]))
        summary.files = write_rows(
            lambda: ((item, row) for item, row in rows() if row["status"] != SKIPPED), names
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "summary.json", json.dumps(summary.as_json(), indent=1))
    print(summary.as_text(), file=sys.stderr)
    return summary


def _top(counts: Counter[str], most: int = 15) -> str:
    shown = ", ".join(f"{printable(name)} {count}" for name, count in counts.most_common(most))
    more = len(counts) - most
    return (shown or "none") + (f" and {more} more" if more > 0 else "")
