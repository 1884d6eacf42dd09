import pytest

from model.weights import names


@pytest.mark.parametrize(
    ("name", "local"),
    [("Qwen/Qwen2.5-VL-3B-Instruct", False), ("./vlm", True), ("/models/vlm", True), ("model", True)],
)
def test_folders_and_hub_ids_are_told_apart(name: str, local: bool) -> None:
    assert names.is_local(name) is local


@pytest.mark.parametrize(
    ("name", "remote"),
    [
        ("mobile_sam.pt", True),
        ("facebook/sam2.1-hiera-tiny", True),
        ("own.pth", False),
        ("weights/own.safetensors", False),
        ("/models/sam2", False),
        ("model", False),
    ],
)
def test_segmenters_to_fetch_and_paths_are_told_apart(name: str, remote: bool) -> None:
    assert names.is_remote_sam(name) is remote
