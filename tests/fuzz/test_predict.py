"""Whole requests against a server with a real segmenter, and models' answers in place of real ones."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from backend.answers.resources import PROCESS
from model.segmentation.embedding import Embedding
from model.types import Detection, Prompt
from tests.support import hostile_inputs as strategies
from tests.support.hostile_inputs import SEEDS, written
from tests.support.stand_in import StandIn
from tests.support.whole_server import ScriptedVLM, WholeServer, counted


@given(sent=st.lists(strategies.bodies(), min_size=1, max_size=3))
def test_any_body_is_answered(server: WholeServer, sent: list[bytes]) -> None:
    """Several in a row, for a click goes on from what the last ones left."""
    server.forget()
    for body in sent:
        counted("bodies")
        server.predict(body)


@given(config=strategies.configs, seed=st.sampled_from(SEEDS))
def test_any_labeling_config_is_used_or_refused(
    server: WholeServer, config: str, seed: dict[str, Any]
) -> None:
    counted("configs")
    server.forget()
    server.predict(written({**seed, "label_config": config}))


@given(
    text=strategies.answers,
    attention=strategies.attentions,
    seed=st.sampled_from(SEEDS),
    typed=strategies.answers,
)
def test_whatever_the_vlm_says_and_wherever_it_looks(
    server: WholeServer,
    said: ScriptedVLM,
    text: str,
    attention: NDArray[np.float32],
    seed: dict[str, Any],
    typed: str,
) -> None:
    counted("VLM answers")
    server.forget()
    said.text, said.attention = text, attention
    phrase = {"type": "textarea", "from_name": "vlsam_prompt", "value": {"text": [typed]}}
    params = {"context": seed["params"]["context"] and {"result": [phrase]}}
    server.predict(written({**seed, "label_config": strategies.EVERY_CONTROL, "params": params}))


class Puppet(StandIn):
    """In place of both models: finds what it is told to, and answers each click with the first of it."""

    def refine(self, embedding: Embedding, prompt: Prompt, level: Any = "auto") -> Detection:
        return self.found[0]


@pytest.fixture(scope="module")
def puppet() -> Puppet:
    return Puppet()


@pytest.fixture(scope="module")
def puppets(puppet: Puppet) -> Iterator[WholeServer]:
    yield WholeServer(puppet)
    PROCESS.install(None)


CLEAN = [seed for seed in SEEDS if "kinds" in seed["tasks"][0]["data"]]


@given(found=st.lists(strategies.detections, min_size=1, max_size=4), seed=st.sampled_from(CLEAN))
def test_whatever_the_models_find(
    puppets: WholeServer, puppet: Puppet, found: list[Detection], seed: dict[str, Any]
) -> None:
    counted("detections")
    puppets.forget()
    puppet.found = found
    for item in puppets.predict(written(seed)):
        assert item, "no task is at fault here"
        for region in item["result"]:
            assert 0 <= region.get("score", 0) <= 1
