"""Model versions: predictions and unfinished runs outlive a release that renames options."""

from dataclasses import replace

from model.options import Options
from model.profiles import choose
from model.versions import version_of
from model.vlm.remote_vlm import RemoteVLM


def test_versions_are_those_of_earlier_releases() -> None:
    # Weights without files are known by their names.
    profile = replace(choose("builtin"), vlm="./no-vlm", sam="./no-sam.pt")
    remote = Options(remote_vlm=RemoteVLM(model="qwen", url="http://127.0.0.1:8000/v1"))
    assert version_of(profile) == "vlsam-builtin-b15ad25c8c"
    assert version_of(profile, remote, "term") == "vlsam-builtin-337f38701f"
