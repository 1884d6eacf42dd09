"""Ask a remote VLM about an image, by an OpenAI-compatible endpoint such as vLLM's.

The local VLM then repeats the remote answer (teacher forcing), and its attention locates the objects.
"""

import base64
import io
import json
import re
from dataclasses import dataclass, field
from typing import Any

import requests
import urllib3
from PIL import Image as PILImage

from model import connections
from model.deadline import NEVER, Deadline
from model.types import Image, RemoteVLMError
from model.vlm.terms import without_cut_name, without_thoughts

MAX_TOKENS = 256  # limit of an answer, the same as for the local VLM
MAX_TEXT = 4000  # characters: an endpoint may not heed MAX_TOKENS
MAX_BYTES = 1_000_000  # of a response body
TIMEOUT = 60.0  # seconds for an answer, in all
CONNECT = 5.0  # seconds
QUALITY = 95  # of the JPEG that is sent
MAX_SIDE = 65_500  # pixels: libjpeg's limit
_NO_THOUGHTS = "use a model that does not think first, or switch its thinking off"


@dataclass(frozen=True)
class RemoteVLM:
    """A remote VLM. Its `repr`, which leaves out url and key, is part of the model version."""

    model: str
    url: str = field(repr=False)  # up to and with /v1, as a rule
    key: str | None = field(default=None, repr=False)  # sent to `url` and nowhere else

    def answer(self, image: Image, question: str, deadline: Deadline = NEVER) -> str:
        """Return the answer to a question about an image, uint8 (H, W, 3): at most MAX_TEXT characters.

        Remove the model's thoughts and a name that was cut at the end. Raises RemoteVLMError, also after
        TIMEOUT seconds or after `deadline`.
        """
        try:
            return _text(self._ask(image, question, deadline.within(TIMEOUT)))
        except RemoteVLMError as error:
            raise RemoteVLMError(f"the listing endpoint {self.url} {error}") from None

    def _ask(self, image: Image, question: str, deadline: Deadline) -> bytes:
        """Send the question and return the response body. Raises RemoteVLMError, with no url in it."""
        picture = {"type": "image_url", "image_url": {"url": _data_url(image)}}
        message = {"role": "user", "content": [picture, {"type": "text", "text": question}]}
        limits = {"temperature": 0, "max_tokens": MAX_TOKENS}
        try:
            with connections.request(
                "POST",
                f"{self.url}/chat/completions",
                json={"model": self.model, "messages": [message], **limits},
                auth=self._authorise,
                timeout=(CONNECT, deadline.check()),
                allow_redirects=False,
                stream=True,
            ) as response:
                if response.status_code != 200:
                    raise RemoteVLMError(self._refusal(response.status_code))
                return _read(response, deadline)
        except (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError):
            raise RemoteVLMError("did not answer in time: is it loading or overloaded?") from None
        except connections.ProxyError as error:
            raise RemoteVLMError(f"cannot be asked: {error}") from None
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            if distrust := connections.distrust(error):
                raise RemoteVLMError(distrust) from None
            raise RemoteVLMError("cannot be reached: is it running, and the address right?") from None

    def _authorise(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the key to a request. Without this `auth`, requests would send a password of ~/.netrc."""
        if self.key:
            request.headers["Authorization"] = f"Bearer {self.key}"
        return request

    def _refusal(self, status: int) -> str:
        """Return an error message for an HTTP status, without the response body, which may hold the key."""
        if status in (401, 403):
            return f"refuses the key ({status}): give it one that is valid there"
        if status == 404:
            return f"has no model {self.model!r} or no /chat/completions (404): check name and address"
        if 300 <= status < 400:
            return f"sends elsewhere ({status}): give the address that it leads to"
        if 400 <= status < 500 and status not in (408, 429):
            return f"refuses the request ({status}): its model must take images; its log says more"
        return f"cannot answer now ({status}): try again later"


def _data_url(image: Image) -> str:
    if max(image.shape) > MAX_SIDE:
        raise RemoteVLMError(f"is sent JPEG, which holds no image of more than {MAX_SIDE} pixels on a side")
    file = io.BytesIO()
    PILImage.fromarray(image).save(file, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _read(response: requests.Response, deadline: Deadline) -> bytes:
    content = b""
    # read1 returns what has arrived, so the deadline also stops a server that sends a byte a second.
    while piece := response.raw.read1(1 << 16, decode_content=True):
        content += piece
        if len(content) > MAX_BYTES:
            raise RemoteVLMError(f"answers with more than {MAX_BYTES} bytes: that is not a list of objects")
        deadline.check()
    return content


def _text(content: bytes) -> str:
    try:
        choice: Any = json.loads(content)["choices"][0]
        text, ended = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise RemoteVLMError("does not answer with a chat completion: check the address") from None
    if not isinstance(text, str) or not text.strip():
        raise RemoteVLMError(f"gave no text within {MAX_TOKENS} tokens: {_NO_THOUGHTS}")
    # Blank lines in place of thoughts would cost the local VLM a token each.
    said = re.sub(r"\n{3,}", "\n\n", without_thoughts(text)).strip("\n")
    if not said.strip():
        raise RemoteVLMError(f"gave only thoughts within {MAX_TOKENS} tokens: {_NO_THOUGHTS}")
    if str(ended).lower() in ("length", "max_tokens") or len(said) > MAX_TEXT:
        said = without_cut_name(said[:MAX_TEXT])
        if not said.strip():
            raise RemoteVLMError(f"was cut after {MAX_TOKENS} tokens, before the end of the first name")
    return said
