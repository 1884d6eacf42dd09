import os
import subprocess
from pathlib import Path

import pytest

from backend.images.fetch import Fetcher
from tests.support.fetching import FILE, LOOPBACK, fetcher_with


@pytest.fixture
def fetcher() -> Fetcher:
    """A fetcher that may ask servers on loopback."""
    return fetcher_with(image_timeout=5, allowed_hosts=LOOPBACK)


@pytest.fixture
def strict() -> Fetcher:
    """A fetcher with the default settings: loopback is refused."""
    return fetcher_with(image_timeout=5)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for dog.example and its key."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-days", "2", "-subj", "/CN=dog.example", "-addext", "subjectAltName=DNS:dog.example",
            "-keyout", "key.pem", "-out", "cert.pem",
        ],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "pets").mkdir(parents=True)
    (root / "pets/my dog.png").write_bytes(FILE)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "rootless.png").write_bytes(b"secret")
    (root / "out.png").symlink_to(tmp_path / "secret.png")
    (root / "outside").symlink_to(tmp_path)
    (root / "in.png").symlink_to(root / "pets/my dog.png")
    (root / "round.png").symlink_to(root / "round.png")
    os.mkfifo(root / "pipe.png")
    return root
