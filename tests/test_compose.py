"""docker-compose.yml and the Dockerfile, read as text: they must agree with the code and Label Studio."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from backend.settings import Settings
from model.profiles import PROFILES
from model.weights.sam_checkpoints import CHECKPOINTS

ROOT = Path(__file__).parents[1]
COMPOSE = ROOT / "docker-compose.yml"
# `${NAME:-default}` and `${NAME:?what to do}`
VARIABLE = re.compile(r"\$\{(\w+)(?::[-?][^}]*)?\}")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    return loaded


BACKENDS = ("vlsam", "vlsam-gpu", "vlsam-1", "vlsam-2")


def test_label_studio_accepts_a_backend_on_a_private_network(services: dict[str, Any]) -> None:
    studio = services["label-studio"]
    assert studio["image"] == "heartexlabs/label-studio:1.23.2"
    assert studio["environment"]["USE_DEFAULT_BANNED_SUBNETS"] == "false"


def test_first_account_owns_the_backends_token(services: dict[str, Any]) -> None:
    studio, backend = (services[name]["environment"] for name in ("label-studio", "vlsam"))
    assert studio["LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN"] == "true"
    assert studio["LABEL_STUDIO_USER_TOKEN"] == backend["LABEL_STUDIO_API_KEY"]
    # Label Studio creates an account at the first start only if it is given both.
    assert {"LABEL_STUDIO_USERNAME", "LABEL_STUDIO_PASSWORD"} <= studio.keys()


def test_no_secret_has_a_default(services: dict[str, Any]) -> None:
    for service in services.values():
        for name, value in service["environment"].items():
            if name.endswith(("PASSWORD", "USER_TOKEN", "API_KEY")):
                assert re.fullmatch(r"\$\{\w+:\?.+\}", value), name


@pytest.mark.parametrize("name", BACKENDS)
def test_backend_environment_is_known_to_the_settings(services: dict[str, Any], name: str) -> None:
    environment = {k: VARIABLE.sub("0" * 40, v) for k, v in services[name]["environment"].items()}
    assert environment.keys() <= {row[0] for group in Settings.groups().values() for row in group.table()}
    settings = Settings.from_env(environment)
    assert settings.models.profile in PROFILES
    assert settings.label_studio.url == "http://label-studio:8080"


@pytest.mark.parametrize("name", BACKENDS)
def test_backends_have_no_rights(services: dict[str, Any], name: str) -> None:
    service = services[name]
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", BACKENDS)
def test_backend_ports_are_only_for_this_machine(services: dict[str, Any], name: str) -> None:
    for port in services[name]["ports"]:
        address, _, inside = port.split(":")
        assert address == "127.0.0.1"
        assert inside == "9090"


def test_published_ports_differ(services: dict[str, Any]) -> None:
    published = [VARIABLE.sub("8080", p).rpartition(":")[0] for s in services.values() for p in s["ports"]]
    assert len(set(published)) == len(published)


def test_every_service_has_a_health_check_on_its_port(services: dict[str, Any]) -> None:
    for service in services.values():
        inside = service["ports"][0].rpartition(":")[2]
        program, *arguments = service["healthcheck"]["test"]
        assert program == "CMD"
        assert f"http://127.0.0.1:{inside}/health" in arguments[-1]


def test_volumes_are_declared_and_lie_where_data_is_written(services: dict[str, Any]) -> None:
    declared = yaml.safe_load(COMPOSE.read_text())["volumes"]
    mounts = {name: dict(v.split(":")[:2] for v in service["volumes"]) for name, service in services.items()}
    for sources in mounts.values():
        assert {source for source in sources if not source.startswith("./")} <= declared.keys()
    assert mounts["label-studio"]["label-studio-data"] == "/label-studio/data"
    dockerfile = (ROOT / "Dockerfile").read_text()
    for backend in BACKENDS:
        models = mounts[backend]["models"]
        assert f"HF_HOME={models} MODEL_DIR={models}" in dockerfile
        assert f"VOLUME {models}" in dockerfile


def test_gpu_service_needs_nothing_but_its_profile(services: dict[str, Any]) -> None:
    gpu = services["vlsam-gpu"]
    assert PROFILES[gpu["environment"]["VLSAM_PROFILE"]].sam in CHECKPOINTS
    assert "VLSAM_SAM" not in gpu["environment"]


def test_gpu_service_starts_only_when_asked_for(services: dict[str, Any]) -> None:
    gpu = services["vlsam-gpu"]
    assert gpu["profiles"] == ["gpu"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert "gpu" in device["capabilities"]
    assert gpu["environment"]["VLSAM_PROFILE"].startswith("gpu-")
    assert not services["vlsam"].get("profiles")


def test_replicas_and_their_balancer_start_together_when_asked_for(services: dict[str, Any]) -> None:
    balancer = services["balancer"]
    replicas = [name for name, service in services.items() if service.get("profiles") == ["replicas"]]
    assert sorted(replicas) == ["balancer", "vlsam-1", "vlsam-2"]
    assert balancer["depends_on"] == ["vlsam-1", "vlsam-2"]
    # Replicas differ in nothing that decides results, or a task's predictions would depend on who answers.
    assert services["vlsam-1"]["environment"] == services["vlsam-2"]["environment"]


def test_the_balancer_has_what_its_configuration_asks_for(services: dict[str, Any]) -> None:
    balancer = services["balancer"]
    (mount,) = balancer["volumes"]
    source, target, mode = mount.split(":")
    assert (target, mode) == ("/usr/local/etc/haproxy/haproxy.cfg", "ro")
    configuration = (ROOT / source).read_text()
    assert set(re.findall(r'"\$\{(\w+)\}"', configuration)) == balancer["environment"].keys()
    places = [balancer["environment"][name] for name in ("REPLICA_1", "REPLICA_2")]
    assert places == ["vlsam-1:9090", "vlsam-2:9090"]
    assert balancer["environment"]["BIND"] == ":" + balancer["ports"][0].rpartition(":")[2]


def test_image_serves_as_an_ordinary_user() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    final = lines[max(i for i, line in enumerate(lines) if line.startswith("FROM")) :]
    assert "USER vlsam" in final
    assert 'CMD ["vlsam", "serve", "--host", "0.0.0.0", "--port", "9090"]' in final
    assert any(line.startswith("HEALTHCHECK") for line in final)


def test_image_holds_nothing_that_builds_or_installs() -> None:
    build, final = (ROOT / "Dockerfile").read_text().split("\nFROM ")[1:]
    assert not re.search(r"pip install|apt|gcc|make", final)
    assert "pip uninstall --yes pip" in final
    assert "pip uninstall --yes pip" in build  # of the environment that is copied


def test_build_context_is_an_allow_list_of_what_the_dockerfile_copies() -> None:
    rules = [r for r in (ROOT / ".dockerignore").read_text().splitlines() if r and not r.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied: set[str] = set()
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            copied |= set(line.split()[1:-1])
    assert copied == allowed
    assert all((ROOT / name).exists() for name in allowed)


def test_docker_compose_accepts_the_file() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("`docker compose` is not installed")
    environment = {**os.environ, "LABEL_STUDIO_API_KEY": "0" * 40, "LABEL_STUDIO_PASSWORD": "0" * 16}
    command = [docker, "compose", "--file", str(COMPOSE), "--profile", "*", "config", "--quiet"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
