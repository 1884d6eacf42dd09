import re

from flask import Flask
from flask.testing import FlaskClient

from backend.labelstudio.request import MAX_TASKS
from backend.web.openapi import DESCRIPTION


def test_every_route_is_described_and_nothing_else_is(client: FlaskClient) -> None:
    app: Flask = client.application
    routes = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    described = {(path, method) for path, methods in DESCRIPTION["paths"].items() for method in methods}
    assert described == routes


def test_it_is_served(client: FlaskClient) -> None:
    assert client.get("/openapi.json").json == DESCRIPTION


def test_its_bounds_are_those_of_the_code() -> None:
    body = DESCRIPTION["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["tasks"]["maxItems"] == MAX_TASKS
