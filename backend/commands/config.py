"""Print a labeling config, ready to paste.

Its place is Settings, Labeling Interface, Code of a project. The labels stand above the picture, in distinct
colours and with a key each, and the only smart tool is the point. Label Studio's own exports contain what
this tool draws, and so does `vlsam export`.

  masks      exact to the pixel, with holes and parts; Label Studio exports them as "Brush labels to COCO",
             PNG and NumPy
  polygons   one ring around each object; COCO and YOLO
  boxes      COCO, YOLO and Pascal VOC

--from another config or a project takes its labels with their aliases, predicted values and colours, and the
names that tasks and annotations refer to. Label Studio then accepts the new config in place of the old one,
unless there are annotations of another kind. Standard output gets the config alone; remarks go to standard
error.

examples:
  vlsam config --labels "Dog,Car"                     masks
  vlsam config --labels "Dog,Car" --for boxes         or polygons
  vlsam config --labels 'Dog,"Boots, black"'          a label with a comma
  vlsam config --from classes.txt > config.xml        a file with a label on each line
  vlsam config --from config.xml --for polygons       of another config
  vlsam config --from project 7                       of the project with this number in its address
  vlsam config --from project 7 --labels Bus          and one label more
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from backend.commands.parser import Parser
from backend.labelstudio import recommended_configs as configs
from backend.labelstudio.recommended_configs import Kind, LabelTag, Names
from backend.telemetry.logs import remark


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--labels", metavar="A,B", default="", help='with commas between: "Dog,Car"')
    parser.add_argument(
        "--from", dest="source", metavar="SOURCE", nargs="+",
        help="a file with a label on each line, an .xml file with a labeling config, or project 7 (or "
        "labelstudio://7), which needs LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY; --labels come after these",
    )  # fmt: skip
    parser.add_argument(
        "--for", dest="kind", choices=configs.KINDS, default="masks", help="what regions are (default: masks)"
    )


def run(args: argparse.Namespace) -> int:
    tags, names = _read(args.source, args.kind) if args.source else ([], Names())
    given = [*tags, *configs.split(args.labels)]
    tags = list(configs.checked(given))
    if not tags:
        raise ValueError('there are no labels: give --labels "Dog,Car" or --from labels.txt')
    if len(given) > len(tags):
        remark(f"{len(given) - len(tags)} empty or repeated labels are left out")
    if len(tags) > len(configs.KEYS):
        keys = f"the first {len(configs.KEYS)} of {len(tags)} labels have a key"
        remark(f"{keys}; there are no more that Label Studio leaves free")
    xml = configs.label_config(tags, args.kind, names)
    encoding = sys.stdout.encoding or "utf-8"  # a character that it lacks is written as &#...;
    sys.stdout.write(xml.encode(encoding, "xmlcharrefreplace").decode(encoding))
    return 0


def _read(given: Sequence[str], kind: Kind) -> tuple[list[LabelTag], Names]:
    """Return the labels and tag names in [FILE] or ["project", NUMBER]. Raises ValueError."""
    named = re.fullmatch(r"project\s+(.+)", " ".join(given))
    source = f"labelstudio://{named[1].strip()}" if named else given[0]
    if not named and len(given) > 1:
        raise ValueError(f"--from {' '.join(given)}: give one file, or project and its number")
    from backend.labelstudio_api.client import StudioClient, project_number
    from backend.settings import Settings

    if (number := project_number(source)) is not None:
        settings = Settings.from_env()
        client = StudioClient.connect(settings.images, settings.label_studio)
        return _of_config(client.label_config(number), kind, f"project {number}")
    try:
        text = Path(source).read_text("utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise ValueError(f"--from {source} cannot be read: {error}") from None
    if Path(source).suffix.lower() == ".xml":
        return _of_config(text, kind, source)
    return [LabelTag(line) for line in text.splitlines()], Names()


def _of_config(xml: str, kind: Kind, where: str) -> tuple[list[LabelTag], Names]:
    tags = configs.tags_of(xml)
    if not tags:
        raise ValueError(f"the labeling config of {where} has no labels: they come with the data of tasks")
    return tags, configs.names_of(xml, kind)
