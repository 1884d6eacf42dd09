"""Write into <TextArea name="vlsam_status"> why an answer has no regions; the next success empties it."""

from typing import Any

STATUS = "vlsam_status"  # the name of the control; its text is never a prompt


def status(text: str, to_name: str, result_id: str) -> dict[str, Any]:
    """Return the result that sets the text of the TextArea named STATUS. An empty text clears it."""
    return {
        "id": result_id,
        "from_name": STATUS,
        "to_name": to_name,
        "type": "textarea",
        "origin": "prediction",
        "value": {"text": [text] if text else []},
    }
