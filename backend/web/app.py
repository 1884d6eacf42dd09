"""Serve the HTTP routes that Label Studio calls. `ml_backend` makes the answers."""

import hmac
import logging
import select
import socket
import threading
import time
from functools import partial
from typing import Any

from cachetools import LRUCache
from flask import Flask, Response, g, jsonify, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from backend.answers import ml_backend
from backend.answers.resources import PROCESS, Resources
from backend.answers.task_image import UNEXPECTED, Access
from backend.answers.unmatched_terms import UnknownProject
from backend.doctor.watch import Watch
from backend.images.studio_urls import Server
from backend.labelstudio import bounded_json, labeling_config
from backend.labelstudio.request import BadRequest, Batch, parse_body
from backend.runtime.job_queue import Unavailable
from backend.settings import ServerSettings, Settings
from backend.telemetry import logs
from backend.telemetry.metrics import MEDIA_TYPE
from backend.web.openapi import DESCRIPTION

log = logging.getLogger(f"vlsam.{__name__}")

MAX_PROJECTS = 1000
RETRY_SECONDS = "5"
WITHOUT_PASSWORD = ("health", "ready", "webhook")

Answer = tuple[Response, int]


class Projects:
    """The Label Studio server of each project: the one that /setup named, else `default`. Thread-safe."""

    def __init__(self, default: Server | None = None) -> None:
        self._default = default
        self._servers: LRUCache[str, Server | None] = LRUCache(MAX_PROJECTS)
        self._lock = threading.Lock()

    def remember(self, project: str, server: Server | None) -> None:
        with self._lock:
            self._servers[project] = server

    def server(self, project: str) -> Server | None:
        with self._lock:
            return self._servers.get(project, self._default)


def create_app(settings: Settings | None = None, resources: Resources | None = None) -> Flask:
    """Create the Flask application, and load its models in the background.

    Label Studio 1.23.2 waits 1 s for /health, 3 s for /setup and 1 s for /webhook, so they must be answered
    while /predict runs. Raises SettingsError and ModelLoadError.
    """
    if resources is None:
        resources = Resources.of(settings or Settings.from_env())
    settings = resources.settings
    PROCESS.install(resources)
    resources.start()

    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.server.max_body_bytes
    app.json.sort_keys = False  # type: ignore[attr-defined]
    projects = Projects(Server.choose(settings.label_studio, "", ""))
    watch = Watch(resources.images)

    @app.after_request
    def _count(response: Response) -> Response:
        response.headers["X-Request-ID"] = g.id
        route = request.endpoint or "none"
        resources.metrics.requests.labels(route, response.status_code).observe(time.perf_counter() - g.since)
        return response

    @app.before_request
    def _begin() -> Answer | None:
        g.since, g.id = time.perf_counter(), logs.begin_request(request.headers.get("X-Request-ID"))
        # Label Studio calls webhooks without the password, and health checks seldom have one.
        if request.endpoint in WITHOUT_PASSWORD or settings.server.basic_auth_user is None:
            return None
        if _may_enter(settings.server):
            return None
        response, status = _error("This server asks for BASIC_AUTH_USER and BASIC_AUTH_PASS.", 401)
        response.headers["WWW-Authenticate"] = 'Basic realm="vlsam", charset="UTF-8"'
        return response, status

    @app.get("/health", endpoint="health")
    @app.get("/", endpoint="root")
    def _health() -> Response:
        return jsonify(
            status="UP",
            model_class=ml_backend.VLSAMBackend.__name__,
            model_version=resources.version,
            model=resources.queue.state,
        )

    @app.get("/ready", endpoint="ready")
    def _ready() -> Answer:
        """Return whether predictions can be made, and the result of each check. HTTP status 200 or 503."""
        checks = resources.readiness()
        ready = checks == {"models": "ready", "device": "ok", "disk": "ok"}
        return jsonify(ready=ready, checks=checks), 200 if ready else 503

    @app.post("/setup", endpoint="setup")
    def _setup() -> Response:
        body = _body()
        project = _project(body)
        hostname, token = _optional_text(body, "hostname"), _optional_text(body, "access_token")
        server = Server.choose(settings.label_studio, hostname, token, _caller())
        projects.remember(project, server)
        schema = body.get("schema")
        if isinstance(schema, str) and schema.strip():
            try:
                config = labeling_config.parse(schema)
                resources.unmatched_terms.configure(project, config)
                other = settings.answers.leftover.partition(":")[2]
                if other and not config.has(other):
                    log.warning(
                        "Project %s has no label %r for VLSAM_LEFTOVER: others are dropped.",
                        project,
                        other,
                    )
            except labeling_config.ConfigError as error:
                log.warning("Project %s cannot be annotated: %s", project, error)
        if server is not None:
            watch.begin(project, server)  # not here: Label Studio waits for this answer
        return jsonify(model_version=resources.version)

    @app.get("/versions", endpoint="versions")
    def _versions() -> Response:
        return jsonify(versions=[resources.version])

    @app.get("/metrics", endpoint="metrics")
    def _metrics() -> Response:
        # With several WORKERS: those of the worker that answers.
        return Response(resources.metrics.text(), content_type=MEDIA_TYPE)

    @app.get("/terms", endpoint="terms")
    def _terms() -> Answer:
        # With several WORKERS: those of the worker that answers.
        try:
            project, rows = resources.unmatched_terms.report(request.args.get("project", ""))
        except UnknownProject as error:
            return _error(str(error), 404)
        return jsonify(project=project, terms=[{"term": term, "images": n} for term, n in rows]), 200

    @app.get("/openapi.json", endpoint="openapi")
    def _openapi() -> Response:
        return jsonify(DESCRIPTION)

    @app.post("/webhook", endpoint="webhook")
    @app.post("/webhook/<secret>", endpoint="webhook")
    def _webhook(secret: str = "") -> Answer:
        if settings.server.webhook_secret is not None:
            given = secret or request.headers.get("X-Webhook-Secret")
            if not hmac.compare_digest(_bytes(given), _bytes(settings.server.webhook_secret)):
                return _error("This address asks for VLSAM_WEBHOOK_SECRET.", 401)
        # Corrections travel in the tasks themselves: events are not needed.
        return jsonify(status="ok"), 201

    @app.post("/predict", endpoint="predict")
    def _predict() -> Response:
        body = _body()
        project, gone = _project(body), partial(_hung_up, request.environ.get("gunicorn.socket"))
        access = Access(resources, projects.server(project), project, gone)
        parsed = parse_body(body)
        if isinstance(parsed, Batch):
            return jsonify(results=ml_backend.answer_batch(parsed, access))
        return jsonify(results=ml_backend.answer_context(parsed, access))

    @app.errorhandler(BadRequest)
    @app.errorhandler(labeling_config.ConfigError)
    @app.errorhandler(Unavailable)
    def _refused(error: Exception) -> Answer:
        resources.metrics.errors.labels(type(error).__name__).inc()
        log.warning("%s %s: %s", request.method, request.path, error)
        if not isinstance(error, Unavailable):
            return _error(str(error), 400)
        response, status = _error(str(error), 503)
        response.headers["Retry-After"] = RETRY_SECONDS
        return response, status

    @app.errorhandler(HTTPException)
    def _http_error(error: HTTPException) -> Answer:
        response, status = _error(error.description or error.name, error.code or 500)
        allowed = getattr(error, "valid_methods", None)
        if allowed:  # which a 405 requires
            response.headers["Allow"] = ", ".join(sorted(allowed))
        return response, status

    @app.errorhandler(Exception)
    def _failed(error: Exception) -> Answer:
        resources.metrics.errors.labels(UNEXPECTED).inc()
        log.error("%s %s failed.", request.method, request.path, exc_info=error)
        return _error(f"The server failed; see its log at {g.id}.", 500)

    return app


def _error(sentence: str, status: int) -> Answer:
    return jsonify(error=sentence), status


def _may_enter(server: ServerSettings) -> bool:
    given = request.authorization
    if given is None or given.type != "basic":
        return False
    # Bytes, since compare_digest refuses text beyond ASCII; & since the time of `and` would reveal the user.
    user = hmac.compare_digest(_bytes(given.username), _bytes(server.basic_auth_user))
    password = hmac.compare_digest(_bytes(given.password), _bytes(server.basic_auth_pass))
    return user & password


def _bytes(text: str | None) -> bytes:
    return (text or "").encode("utf-8", "surrogatepass")


def _hung_up(connection: socket.socket | None) -> bool:
    """Return whether the client has closed the connection; False if `connection` is None."""
    try:
        if connection is None or not select.select([connection], [], [], 0)[0]:
            return False
        return connection.recv(1, socket.MSG_PEEK) == b""
    except (OSError, ValueError):
        return True


def _caller() -> str:
    """Return the IP address of the client; "" if a proxy forwarded the request."""
    proxied = any(name in request.headers for name in ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via"))
    return "" if proxied else request.remote_addr or ""


def _body() -> dict[str, Any]:
    """Return the JSON object in the body of the request. Raises HTTP errors 400, 413 and 415."""
    if not request.is_json:
        request.on_json_loading_failed(None)
    try:
        body = bounded_json.loads(_data())
    except bounded_json.TooLarge as error:
        raise RequestEntityTooLarge(str(error)) from None
    except (ValueError, RecursionError):
        raise BadRequest("The body is not JSON.") from None
    if not isinstance(body, dict):
        raise BadRequest("The body must be a JSON object.")
    return body


def _data() -> bytes:
    """Return the body of the request. A body of known length is read in one piece, which is faster."""
    length = request.content_length
    data = request.stream.read(length) if length else b""
    return data if length and len(data) == length else data + request.get_data(cache=False)


def _project(body: dict[str, Any]) -> str:
    """Return the project of a request, as Label Studio sends it: "ID.CREATED"; "" if it is missing."""
    project = body.get("project")
    return ascii(project).strip("'")[:100] if isinstance(project, str | int) else ""


def _optional_text(body: dict[str, Any], key: str) -> str:
    value = body.get(key)
    return value.strip() if isinstance(value, str) else ""
