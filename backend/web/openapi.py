"""What every route takes and answers, as OpenAPI: served at /openapi.json, and what the fuzzers read."""

from importlib.metadata import version
from typing import Any

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_ANYTHING: Schema = {}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _object(required: str = "", /, **properties: Schema) -> Schema:
    """An object with these properties, the names in `required` always there; others may be."""
    return {"type": "object", "required": required.split(), "properties": properties}


def _json(description: str, schema: Schema) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _answers(status: int, description: str, schema: Schema, **errors: str) -> Schema:
    """The responses of a route: its own, and errors as in `e404="why"`."""
    failed = {code.lstrip("e"): _json(why, _ref("Error")) for code, why in errors.items()}
    return {str(status): _json(description, schema), **failed}


_UNKNOWN = {"e401": "The server wants BASIC_AUTH_USER and BASIC_AUTH_PASS."}
_UNREADABLE = {
    "e400": "The body cannot be read; the sentence names the field.",
    "e413": "The body is too large.",
    "e415": "The body is not declared as JSON.",
}

_HEALTH: Schema = {
    "summary": "That the process is alive, whatever its models do.",
    "security": [],
    "responses": _answers(
        200,
        "Alive.",
        _object(
            "status model_class model_version model",
            status={"const": "UP"},
            model_class=_TEXT,
            model_version=_TEXT,
            model={"enum": ["loading", "ready", "failed"]},
        ),
    ),
}

_WEBHOOK: Schema = {
    "summary": "Label Studio's events. They are not read.",
    "security": [],
    "requestBody": {"content": {"application/json": {"schema": _ANYTHING}}},
    "responses": _answers(
        201,
        "Heard.",
        _object("status", status={"const": "ok"}),
        e401="The server wants VLSAM_WEBHOOK_SECRET.",
    ),
}

_READY = _object(
    "ready checks",
    ready={"type": "boolean"},
    checks=_object(
        "models device disk",
        models={"enum": ["loading", "ready", "failed"]},
        device={"type": "string", "description": "ok, or what is wrong."},
        disk={"type": "string", "description": "ok, or what is wrong."},
    ),
)

_SCHEMAS: Schema = {
    "Error": _object("error", error={"type": "string", "description": "One sentence."}),
    "Task": _object(
        id={"type": ["integer", "string"]},
        data={
            "type": "object",
            "description": "Holds the image's address, and what the config takes from it.",
        },
        drafts=_list({"type": "object"}),
        annotations=_list({"type": "object"}),
        predictions=_list({"type": "object"}),
    ),
    "Context": _object(
        result={**_list({"type": "object"}), "description": "Clicks, rectangles or a text; the newest last."},
        event={"description": "Of the next Label Studio: capabilities or release."},
    ),
    "Region": _object(
        "type value",
        id=_TEXT,
        from_name=_TEXT,
        to_name=_TEXT,
        type=_TEXT,
        origin={"const": "prediction"},
        original_width={"type": "integer"},
        original_height={"type": "integer"},
        image_rotation={"const": 0},
        score={"type": "number", "minimum": 0, "maximum": 1},
        value={"type": "object"},
        meta={"type": "object"},
    ),
    "Prediction": _object(
        "result score model_version",
        result=_list(_ref("Region")),
        score={"type": "number", "minimum": 0, "maximum": 1},
        model_version=_TEXT,
        reason={"type": "string", "description": "Why a click has an empty result."},
    ),
}

_PATHS: Schema = {
    "/": {
        "get": {
            **_HEALTH,
            "security": [{"basic": []}],
            "responses": {**_HEALTH["responses"], "401": _json(_UNKNOWN["e401"], _ref("Error"))},
        }
    },
    "/health": {"get": _HEALTH},
    "/ready": {
        "get": {
            "summary": "Whether a prediction that is asked for now would be made, and if not why.",
            "security": [],
            "responses": {
                "200": _json("It would.", _READY),
                "503": _json("It would not, or less well.", _READY),
            },
        }
    },
    "/setup": {
        "post": {
            "summary": "Label Studio names a project, its labeling config, and where files are fetched.",
            "requestBody": {
                "required": True,
                **_json(
                    "What is missing or of another type counts as not said.",
                    _object(project=_TEXT, schema=_TEXT, hostname=_TEXT, access_token=_TEXT),
                ),
            },
            "responses": _answers(
                200, "Heard.", _object("model_version", model_version=_TEXT), **_UNREADABLE, **_UNKNOWN
            ),
        }
    },
    "/predict": {
        "post": {
            "summary": "Predictions for tasks; with a context, the answer to a click in the first task.",
            "requestBody": {
                "required": True,
                **_json(
                    "As Label Studio sends it.",
                    _object(
                        "tasks label_config",
                        tasks=_list(_ref("Task")),
                        label_config={"type": "string", "description": "XML."},
                        project=_TEXT,
                        params=_object(context={"anyOf": [_ref("Context"), {"type": "null"}]}),
                    ),
                ),
            },
            "responses": _answers(
                200,
                "One item per task, in order, {} for one that failed; with a context exactly one item; none "
                "for one task without a context where VLSAM_ON_OPEN=prewarm.",
                _object(
                    "results",
                    results=_list({"anyOf": [{"type": "object", "maxProperties": 0}, _ref("Prediction")]}),
                ),
                **_UNREADABLE,
                **_UNKNOWN,
                e503="The weights could not be loaded, or too many predictions wait.",
            ),
        }
    },
    "/webhook": {
        "post": {
            **_WEBHOOK,
            "parameters": [{"name": "X-Webhook-Secret", "in": "header", "schema": _TEXT}],
        }
    },
    "/webhook/{secret}": {
        "post": {
            **_WEBHOOK,
            "parameters": [{"name": "secret", "in": "path", "required": True, "schema": _TEXT}],
        }
    },
    "/versions": {
        "get": {
            "summary": "The model version that predictions carry.",
            "responses": _answers(200, "One.", _object("versions", versions=_list(_TEXT)), **_UNKNOWN),
        }
    },
    "/terms": {
        "get": {
            "summary": "What the model named and a project has no label for.",
            "parameters": [
                {
                    "name": "project",
                    "in": "query",
                    "description": "Its number. Not needed where one project alone was annotated.",
                    "schema": _TEXT,
                }
            ],
            "responses": _answers(
                200,
                "Most images first.",
                _object(
                    "project terms",
                    project=_TEXT,
                    terms=_list(_object("term images", term=_TEXT, images={"type": "integer", "minimum": 1})),
                ),
                **_UNKNOWN,
                e404="No image of this project was annotated since the start, or several projects are meant.",
            ),
        }
    },
    "/metrics": {
        "get": {
            "summary": "Figures for Prometheus.",
            "responses": {
                "200": {"description": "Its text format.", "content": {"text/plain": {"schema": _TEXT}}},
                "401": _json(_UNKNOWN["e401"], _ref("Error")),
            },
        }
    },
    "/openapi.json": {
        "get": {
            "summary": "This description.",
            "responses": _answers(200, "OpenAPI.", _object("openapi paths", openapi=_TEXT), **_UNKNOWN),
        }
    },
}

DESCRIPTION: Schema = {
    "openapi": "3.1.0",
    "info": {
        "title": "VL-SAM for Label Studio",
        "version": version("vlsam"),
        "description": "The protocol of Label Studio's ML backends. Errors are JSON, one sentence each; any "
        "route may answer 404, 405 and 413 to what is not described here. Every answer names its request in "
        "X-Request-ID, which may be given.",
    },
    "security": [{"basic": []}],
    "paths": _PATHS,
    "components": {
        "schemas": _SCHEMAS,
        "securitySchemes": {"basic": {"type": "http", "scheme": "basic"}},
    },
}
