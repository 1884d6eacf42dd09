"""Check a project's labeling config: its labels, its clicks, and the exports that hold its regions."""

from collections.abc import Collection, Iterable, Iterator
from functools import partial

from backend.doctor.finding import NOTE, OK, Finding
from backend.labelstudio import labeling_config

# The exports of Label Studio 1.23.2 that hold the regions of a control, by its tag (measured).
_RINGS, _MASKS = ("COCO", "YOLO"), ("PNG", "NumPy")
_HELD = {
    "BrushLabels": ("Brush labels to COCO", *_MASKS),
    "Brush": _MASKS,
    "PolygonLabels": _RINGS,
    "RectangleLabels": (*_RINGS, "Pascal VOC"),
    "Rectangle": (*_RINGS, "Pascal VOC"),
}
# The exports that it offers for a tag, whether they hold its regions or not.
_OFFERED = {**_HELD, "Brush": _HELD["BrushLabels"]}

ok, note = partial(Finding, "config", OK), partial(Finding, "config", NOTE)


def config_findings(config: labeling_config.LabelConfig) -> Iterator[Finding]:
    known = {label.value: None for control in config.predicted for label in control.labels}
    own = any(control.labels_key is not None for control in config.outputs)
    yield ok(f"Regions go to {_named(config.outputs)}.")
    each = ", and each task brings its own" if own else ""
    yield ok(f"{len(known)} labels: {', '.join(known) or '-'}{each}.")
    if not config.prompts:
        yield note(
            "The config has no tool for clicks.",
            'add <KeyPoint name="click" toName="..." smart="true" smartOnly="true"/>, as `vlsam config` does',
        )
        return
    yield ok(f"Clicks and boxes come from {_named(config.prompts)}.")
    if config.idle:
        message = f"Auto-Detect offers {_named(config.idle)}, too, whose smart tool sends nothing."
        yield note(message, 'give it smart="false"')
    clickable = {label.value: None for control in config.prompts for label in control.labels}
    lost = [label for label in clickable if config.label_control(label) is None]
    if lost and not own:
        yield note(
            f"A click with {', '.join(lost)} is not answered: no control takes regions of that label.",
            "add these labels to an output control as well",
        )


def _named(controls: Iterable[labeling_config.Control]) -> str:
    return ", ".join(f"{control.tag} {control.name!r}" for control in controls)


def exports_finding(config: labeling_config.LabelConfig, data_keys: Collection[str]) -> Finding:
    """Report which of Label Studio's export formats contain the regions of a config, and which do not.

    `data_keys` are the keys of a task's data that the config's tags show.
    """
    cure = "`vlsam export` writes all of any config; `vlsam config` prints one whose exports hold the regions"
    drawn = _named(config.outputs)
    if len(data_keys) > 1:
        return note(
            f"Label Studio exports this config to JSON and CSV alone, for its tags show {len(data_keys)} "
            f"values: {', '.join(sorted(data_keys))}.",
            f"give a <Text> that only holds a control the value of the image; {cure}",
        )
    points = [control for control in config.prompts if control.tag == "KeyPointLabels"]
    exported = dict.fromkeys(name for control in config.outputs for name in _HELD.get(control.tag, ()))
    offered = dict.fromkeys(
        name
        for control in (*config.outputs, *config.prompts)
        if control.takes_labels
        for name in _OFFERED.get(control.tag, ())
    )
    spoiled = _RINGS if points else ()  # whatever else there is
    empty = [name for name in offered if name not in exported]
    good = [name for name in exported if name not in spoiled]
    right = f"{', '.join(good)} hold them, and but for JSON no other" if good else "only JSON holds them"
    bad = list(dict.fromkeys([*empty, *spoiled]))
    if not bad:
        message = f"Of Label Studio's exports of {drawn}: {right}."
        return ok(message) if good else note(message, cure)
    why = f" because of KeyPointLabels {points[0].name!r}" if spoiled else ""
    return note(
        f"Label Studio's exports to {', '.join(bad)} are empty or call everything `default`{why}. "
        f"Of {drawn}: {right}.",
        cure,
    )
