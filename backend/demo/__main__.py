"""Start a real Label Studio with a project that this backend has pre-annotated: `make demo`."""

import argparse
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from backend.demo import instructions, processes
from backend.demo.processes import Account, Service, ServiceError
from backend.demo.studio import Studio
from backend.labelstudio.recommended_configs import label_config
from backend.labelstudio_api.client import StudioError
from backend.telemetry.logs import printable
from model.builtin.scenes import NAMES

SAMPLES = Path(__file__).parents[2] / "model" / "builtin" / "samples"
TITLE = "VL-SAM demo"
# The first start creates the database: 15 s on two idle cores.
START_TIMEOUT_S = 300.0
# Attempts at predictions, which fail while the weights load or when time runs out.
ROUNDS = 3
STARTED = time.monotonic()
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def say(message: str) -> None:
    """Print a line to stderr, with the seconds since the start."""
    print(f"[{time.monotonic() - STARTED:6.1f} s] {message}", file=sys.stderr, flush=True)


def account(data_dir: Path) -> Account:
    """Return the login of the demo's Label Studio. The first call creates it in account.json (mode 0600)."""
    path = data_dir / "account.json"
    if path.exists():
        return Account(**json.loads(path.read_text()))
    created = Account("demo@example.com", secrets.token_urlsafe(9), secrets.token_hex(20))
    data_dir.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(asdict(created), file)
    return created


def ready(studio_url: str, project: int, owner: Account, backend: Service) -> str:
    """Return the text to print when the demo is ready: address, login, instructions and commands."""
    return f"""
  Open      {studio_url}/projects/{project}/data
  Login     {owner.email}
  Password  {owner.password}
  Backend   {backend.url}, which logs to {backend.log}

{instructions.TEXT}
These commands need two settings. In another terminal:

  export LABEL_STUDIO_URL={studio_url} LABEL_STUDIO_API_KEY={owner.token}

What was submitted, as COCO with the images beside it (or .yolo, masks/, .parquet):

  {processes.VLSAM} export --project {project} --to {backend.log.parent}/export.coco.json --copy-images

Nothing happens? This looks for the cause:

  {processes.VLSAM} doctor --project {project}
"""


def prepare_project(studio: Studio, samples: Sequence[Path]) -> int:
    """Find or create the demo's project, and import the missing samples. Return the project's id."""
    project, config = studio.find_project(TITLE), label_config(NAMES)
    if project is None:
        project = studio.create_project(TITLE, config)
    elif studio.project(project)["label_config"] != config:  # of an earlier version
        studio.change_project(project, label_config=config)
    # Label Studio calls an upload "<8 digits>-<name>".
    uploads = (Path(task["data"]["image"]).name for task in studio.tasks(project))
    present = {name.partition("-")[2] for name in uploads}
    missing = [path for path in samples if path.name not in present]
    if missing:
        studio.import_files(project, missing)
    say(f"Project {TITLE!r}: {len(missing)} images imported, {len(samples)} in all")
    return project


def pre_annotate(studio: Studio, project: int, backend: Service) -> None:
    """Request a prediction for each task that has none of the running model. Raises ServiceError."""
    for _ in range(ROUNDS):
        waiting = _without_prediction(studio, project)
        if not waiting:
            return
        say(f"{len(waiting)} images wait for a prediction")
        # One by one for the progress bar: Label Studio sends all chosen tasks in one request.
        for task in tqdm(waiting, desc="pre-annotate", unit="image", file=sys.stderr):
            studio.retrieve_predictions(project, [task])
    if waiting := _without_prediction(studio, project):
        tasks = ", ".join(map(str, waiting))
        problem = f"{len(waiting)} images got no prediction in {ROUNDS} attempts (tasks {tasks})."
        raise ServiceError(f"{problem}\n{backend.tail()}")


def _without_prediction(studio: Studio, project: int) -> list[int]:
    version = studio.backends(project)[0]["model_version"]
    done = {int(p["task"]) for p in studio.predictions(project) if p["model_version"] == version}
    return [int(task["id"]) for task in studio.tasks(project) if int(task["id"]) not in done]


def run(args: argparse.Namespace, running: list[Service]) -> None:
    """Start both services, pre-annotate the samples, and print the address. Add the services to `running`."""
    samples = sorted(path for path in SAMPLES.glob("*") if path.suffix in (".jpg", ".png"))
    if not samples:
        raise ServiceError(f"There are no sample images in {SAMPLES}.")
    if not args.label_studio.exists():
        raise ServiceError(f"Label Studio is not installed at {args.label_studio}; `make studio` does it.")
    owner = account(args.data_dir)
    studio_port = processes.free_port(args.studio_port)
    say("Starting Label Studio (the first start creates its database) and the backend")
    studio_service = processes.start_label_studio(
        args.label_studio, args.data_dir / "data", studio_port, owner, args.data_dir / "label-studio.log"
    )
    running.append(studio_service)
    backend = processes.start_backend(
        processes.free_port(args.port), studio_service.url, owner.token, args.data_dir / "backend.log"
    )
    running.append(backend)
    for service in (backend, studio_service):
        service.wait_until_up(START_TIMEOUT_S, say)

    studio = Studio(studio_service.url, owner.email, owner.password)
    project = prepare_project(studio, samples)
    studio.connect_backend(project, backend.url)
    say("Backend connected")
    pre_annotate(studio, project, backend)
    regions = {result["id"] for prediction in studio.predictions(project) for result in prediction["result"]}
    say(f"Every image has a prediction; {len(regions)} regions in all")
    print(ready(studio.url, project, owner, backend), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m backend.demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="exit when every image has a prediction")
    parser.add_argument("--port", type=int, default=9090, help="of the backend, or the next free one")
    parser.add_argument("--studio-port", type=int, default=8080, help="of Label Studio, or the next free one")
    parser.add_argument("--data-dir", type=Path, default=Path(".demo"), help="database, uploads, logs")
    parser.add_argument(
        "--label-studio", type=Path, default=Path(".venv-studio/bin/label-studio"), help="its command"
    )
    args = parser.parse_args(arguments)
    # SIGINT too: a shell starts background commands with it ignored, and Python leaves it ignored.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.default_int_handler)
    running: list[Service] = []
    ready = False
    try:
        run(args, running)
        ready = True
        if not args.once:
            say("Ctrl+C stops Label Studio and the backend")
            while True:
                for service in running:
                    service.check()
                time.sleep(1)
    except KeyboardInterrupt:
        return 0 if ready else 130
    except (ServiceError, StudioError) as error:
        print("demo:", "\n".join(map(printable, str(error).splitlines())), file=sys.stderr)
        return 1
    finally:
        # A second Ctrl+C must not leave a service running.
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        for service in reversed(running):
            service.stop()
        say("Stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
