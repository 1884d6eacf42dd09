from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest

from backend.answers.resources import PROCESS, Resources
from backend.runtime.job_queue import BATCH, CLICK, Unavailable
from backend.settings import Settings
from backend.web.app import create_app
from model.builtin.scenes import draw_scene
from model.pipeline import VLSAM
from model.types import Detection, ModelLoadError, Prompt
from model.vlm.vlm import VLM
from model.weights import hub
from tests.support.labeling_configs import CONFIG
from tests.support.loopback import running, stand_in_for_hub
from tests.support.settings import settings_with
from tests.support.waiting import soon, wait_for


def test_the_resources_of_a_process_are_made_on_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Resources] = []

    def start(resources: Resources) -> Resources:
        made.append(resources)
        return resources

    monkeypatch.setattr(Resources, "start", start)
    PROCESS.install(None)
    try:
        assert PROCESS.resources() is PROCESS.resources()
        assert made[0] is made[1]
        assert made[0].version
    finally:
        PROCESS.install(None)


@pytest.mark.slow
def test_f6_answers_that_were_cut_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    image = draw_scene(np.random.default_rng(7), width=200, height=150, count=2, degrade=False).image
    resources = Resources.of(Settings()).start()

    def annotate(vlsam: VLSAM) -> list[Detection]:
        return vlsam.annotate(image)

    def counted() -> list[str]:
        lines = resources.metrics.text().decode().splitlines()
        return [line for line in lines if line.startswith("vlsam_cut_answers_total")]

    resources.queue.run(lambda model: model.run("annotate", annotate), priority=BATCH, deadline=soon(60))
    assert counted() == ["vlsam_cut_answers_total 0.0"]
    monkeypatch.setattr(VLM, "answer", partialmethod(VLM.answer, max_new_tokens=2))
    assert (
        resources.queue.run(lambda model: model.run("annotate", annotate), priority=BATCH, deadline=soon(60))
        == []
    )
    assert counted() == ["vlsam_cut_answers_total 1.0"]


def test_a_profile_that_there_is_not() -> None:
    with pytest.raises(ModelLoadError, match="gpu-9000"):
        Resources.of(settings_with(profile="gpu-9000"))


def test_f5_weights_that_the_hub_does_not_give_fail_to_load_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with running() as site:
        stand_in_for_hub(monkeypatch, site.url)
    resources = Resources.of(settings_with(vlm="somebody/tiny-vl", model_dir=tmp_path))
    client = create_app(resources=resources).test_client()
    assert client.get("/health").status_code == 200
    assert client.post("/setup", json={"project": "1.1", "schema": CONFIG}).status_code == 200
    wait_for(lambda: resources.queue.state == "failed")
    assert client.get("/ready").status_code == 503
    with pytest.raises(Unavailable, match="somebody/tiny-vl cannot be fetched, for the hub does not answer"):
        resources.queue.run(lambda model: model, priority=CLICK, deadline=soon())
    PROCESS.install(None)


def test_the_version_of_weights_that_are_not_there_yet_is_that_which_they_will_have(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    weights = {"config.json": b'{"model_type": "qwen2_5_vl"}', "model.safetensors": bytes(5000)}
    with running() as site:
        stand_in_for_hub(monkeypatch, site.url)
        site.repositories["somebody/tiny-vl"] = weights
        settings = settings_with(vlm="somebody/tiny-vl", sam="somebody/tiny-vl", model_dir=tmp_path)
        before = Resources.of(settings)
        hub.ensure("somebody/tiny-vl", tmp_path)
        assert Resources.of(settings).version == before.version
        site.repositories["somebody/tiny-vl"] = {**weights, "model.safetensors": bytes(4999) + b"1"}
        other = Resources.of(replace(settings, models=replace(settings.models, model_dir=tmp_path / "other")))
    assert other.version != before.version
    assert other.embeddings.handle("x").key != before.embeddings.handle("x").key


def test_the_version_is_stable_and_follows_every_setting_that_changes_results() -> None:
    version = Resources.of(Settings()).version
    same = (
        Settings(),
        settings_with(
            port=1234, threads=8, deadline=5.0, log_level="DEBUG", cache_mb=0, labels_in_place=True
        ),
        Settings.from_env({"VLSAM_LEFTOVER": "drop", "VLSAM_SIMILARITY": "0", "VLSAM_VOCABULARY": "open"}),
    )
    assert {Resources.of(settings).version for settings in same} == {version}
    others = [
        settings_with(leftover="keep"),
        settings_with(leftover="other:Thing"),
        settings_with(leftover="other:Any"),
        settings_with(similarity=0.5),
        settings_with(similarity=0.51),
        settings_with(vocabulary="project"),
        settings_with(vocabulary="both"),
        settings_with(questions=("What is there?",)),
        settings_with(attention="paper"),
    ]
    versions = {Resources.of(settings).version for settings in others}
    assert len(versions - {version}) == len(others)


@pytest.mark.slow
def test_regions_name_the_version_that_predictions_do() -> None:
    resources = Resources.of(settings_with(leftover="keep", device="cpu")).start()
    image, prompt = np.zeros((40, 40, 3), np.uint8), Prompt.of((9, 9, 1))
    made = resources.queue.run(
        lambda model: model.run("refine", lambda vlsam: vlsam.refine(vlsam.encode(image), prompt)),
        priority=CLICK,
        deadline=soon(60),
    )
    assert made.evidence.model_version == resources.version
