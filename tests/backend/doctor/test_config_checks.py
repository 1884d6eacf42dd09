import pytest

from backend.doctor.finding import NOTE, OK
from backend.labelstudio.recommended_configs import KINDS, Kind, label_config
from tests.support.doctor_studio import PETS, Studio

BRUSH = '<BrushLabels name="mask" toName="image"><Label value="Cat"/></BrushLabels>'


LIST = '<Labels name="l" toName="image"><Label value="Cat"/></Labels>'


CLICK = """<KeyPointLabels name="click" toName="image" smart="true">
  <Label value="Cat"/><Label value="Dog"/>
</KeyPointLabels>"""


@pytest.mark.parametrize(
    ("controls", "said"),
    [
        (BRUSH, "no tool for clicks"),
        (BRUSH.replace("<BrushLabels ", '<BrushLabels smart="false" ') + CLICK, "with Dog is not answered"),
        (BRUSH + CLICK, "Auto-Detect offers BrushLabels 'mask', too, whose smart tool sends nothing"),
    ],
)
def test_notes_on_the_config(studio: Studio, controls: str, said: str) -> None:
    config = f'<View><Image name="image" value="$image"/>{controls}</View>'
    studio.answers["GET /api/projects/3"] = (200, {"title": "Pets", "label_config": config})
    assert said in studio.find("config", status=NOTE).message


@pytest.mark.parametrize(
    ("controls", "status", "said"),
    [
        (
            '<BrushLabels name="o" toName="image"><Label value="Cat"/></BrushLabels>',
            OK,
            "PNG, NumPy hold them",
        ),
        (
            '<PolygonLabels name="o" toName="image"><Label value="Cat"/></PolygonLabels>',
            OK,
            "COCO, YOLO hold",
        ),
        (
            '<RectangleLabels name="o" toName="image"><Label value="Cat"/></RectangleLabels>',
            OK,
            "COCO, YOLO, Pascal VOC hold them",
        ),
        (
            f'{LIST}<Rectangle name="o" toName="image"/>',
            OK,
            "COCO, YOLO, Pascal VOC hold them",
        ),
        (
            f'<BrushLabels name="o" toName="image"><Label value="Cat"/></BrushLabels>{CLICK}',
            NOTE,
            "exports to COCO, YOLO are empty or call everything `default` because of KeyPointLabels 'click'. "
            "Of BrushLabels 'o': Brush labels to COCO, PNG, NumPy hold them",
        ),
        (
            f'{LIST}<Brush name="o" toName="image"/>',
            NOTE,
            "to Brush labels to COCO are empty or call everything `default`. Of Brush 'o': PNG, NumPy hold",
        ),
        (
            f'{LIST}<Polygon name="o" toName="image"/>',
            NOTE,
            "Polygon 'o': only JSON holds them",
        ),
        (
            '<PolygonLabels name="o" toName="image"><Label value="Cat"/></PolygonLabels>' + CLICK,
            NOTE,
            "exports to COCO, YOLO are empty or call everything `default` because of KeyPointLabels 'click'. "
            "Of PolygonLabels 'o': only JSON holds them",
        ),
        (
            '<BrushLabels name="o" toName="image"><Label value="Cat"/></BrushLabels>'
            '<RectangleLabels name="box" toName="image" smart="true"><Label value="Cat"/></RectangleLabels>',
            NOTE,
            "exports to COCO, YOLO, Pascal VOC are empty",
        ),
        (
            '<BrushLabels name="o" toName="image"><Label value="Cat"/></BrushLabels>'
            '<Text name="said" value="VL-SAM says:"/><TextArea name="vlsam_status" toName="said"/>',
            NOTE,
            "JSON and CSV alone, for its tags show 2 values: $image, VL-SAM says:",
        ),
    ],
)
def test_exports_that_hold_the_regions_and_those_that_do_not(
    studio: Studio, controls: str, status: str, said: str
) -> None:
    config = f'<View><Image name="image" value="$image"/>{controls}</View>'
    studio.answers["GET /api/projects/3"] = (200, {**PETS, "label_config": config})
    found = [f for f in studio.findings() if f.check == "config" and "export" in f.message]
    assert [finding.status for finding in found] == [status]
    assert said in found[0].message
    assert ("vlsam export" in found[0].cure) == (status == NOTE)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_wrong_with_a_recommended_config(studio: Studio, kind: Kind) -> None:
    config = label_config(["Cat", "Dog"], kind)
    studio.answers["GET /api/projects/3"] = (200, {**PETS, "label_config": config})
    assert {f.status for f in studio.findings() if f.check == "config"} == {OK}


def test_labels_that_each_task_brings(studio: Studio) -> None:
    config = """<View><Image name="image" value="$image"/>
      <BrushLabels name="mask" toName="image" value="$names"/>
      <KeyPointLabels name="click" toName="image" smart="true" value="$names"/></View>"""
    studio.answers["GET /api/projects/3"] = (200, {"title": "Pets", "label_config": config})
    said = [f.message for f in studio.findings() if f.check == "config"]
    assert said[1] == "0 labels: -, and each task brings its own."
