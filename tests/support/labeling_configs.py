"""Labeling configs."""

from xml.etree import ElementTree

CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image"><Label value="Cat"/><Label value="Dog"/></BrushLabels>
  <KeyPointLabels name="kp" toName="image" smart="true">
    <Label value="Cat"/><Label value="Dog"/>
  </KeyPointLabels>
  <RectangleLabels name="rect" toName="image" smart="true">
    <Label value="Cat"/><Label value="Dog"/>
  </RectangleLabels>
  <PolygonLabels name="poly" toName="image"><Label value="Cat"/><Label value="Dog"/></PolygonLabels>
</View>
"""


def shown(xml: str) -> list[ElementTree.Element]:
    """Return the <Label> tags of the list above the picture."""
    return [tag for tag in next(iter(ElementTree.fromstring(xml))) if tag.tag == "Label"]
