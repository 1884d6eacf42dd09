"""Describe in one line why an image failed, for commands that process many images."""

import logging

from backend.labelstudio.labeling_config import TaskError
from backend.telemetry.logs import redacted
from model.types import VLSAMError
from model.weights.out_of_memory import out_of_memory

log = logging.getLogger(f"vlsam.{__name__}")

MAX_REASON = 500  # characters


def why(error: Exception, image: str) -> str:
    """Return one line about an error: its message, for an unexpected error with its type.

    An unexpected error is logged with its traceback and the name of the `image`. Secrets are redacted.
    """
    if isinstance(error, TaskError | VLSAMError):
        reason = str(error)
    else:
        log.error("%s failed.", ascii(image[:200]), exc_info=error)
        kind = type(error).__name__
        reason = f"{kind}: {error}" if str(error).strip() else kind
        if out_of_memory(error):
            reason = f"There is too little memory for this image ({reason})"
    return redacted(" ".join(reason.split()))[:MAX_REASON]
