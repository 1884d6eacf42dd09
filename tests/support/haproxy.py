"""Start HAProxy with the shipped configuration."""

import shutil
from pathlib import Path

from backend.demo import processes
from backend.demo.processes import Service
from tests.support.paths import ROOT
from tests.support.studio_servers import without

CONFIG = ROOT / "backend" / "web" / "haproxy.cfg"


def start_balancer(log: Path, *replicas: str) -> Service:
    """Start HAProxy with the shipped file before two replicas, given as host:port."""
    if (haproxy := shutil.which("haproxy") or shutil.which("/usr/sbin/haproxy")) is None:
        without("HAProxy is not installed: `make haproxy` does it in CI")
    port = processes.free_port(0)
    environment = {"BIND": f"127.0.0.1:{port}", "REPLICA_1": replicas[0], "REPLICA_2": replicas[1]}
    command = [haproxy, "-db", "-f", str(CONFIG)]
    return processes.start("HAProxy", command, f"http://127.0.0.1:{port}", log, environment)
