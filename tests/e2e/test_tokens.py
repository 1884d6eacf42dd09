"""Both kinds of token that Label Studio 1.23.2 knows, as the backend's key for uploads."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.labelstudio.recommended_configs import label_config
from model.builtin.scenes import NAMES
from tests.support.label_studio_user import Studio
from tests.support.studio_servers import START_TIMEOUT_S, MakeProject, Servers, save_scene, start_backend


@pytest.fixture
def without_legacy_tokens(studio: Studio) -> Iterator[None]:
    """As after a plain installation: then also the token that Label Studio hands to backends is refused."""
    studio.allow_legacy_tokens(False)
    yield
    studio.allow_legacy_tokens(True)


@pytest.mark.usefixtures("without_legacy_tokens")
def test_personal_access_token_where_legacy_tokens_are_refused(
    studio: Studio, servers: Servers, make_project: MakeProject, personal_token: str, tmp_path: Path
) -> None:
    image = save_scene(tmp_path / "tokens.jpg", 11, width=320, height=280)
    project = make_project("Tokens", label_config(NAMES), [image])
    studio.retrieve_predictions(project.id)
    assert studio.predictions(project.id) == []
    servers.backend.check()

    backend = start_backend(servers.studio, personal_token, tmp_path / "backend.log")
    try:
        backend.wait_until_up(START_TIMEOUT_S)
        studio.connect_backend(project.id, backend.url)
        studio.retrieve_predictions(project.id)
        assert [p["task"] for p in studio.predictions(project.id)] == list(project.tasks), backend.tail()
    finally:
        backend.stop()
