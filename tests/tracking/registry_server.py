"""A Model Registry for tests, which refuses what its OpenAPI description does not allow.

`model-registry.yaml` is the description that kubeflow/model-registry publishes for the API v1alpha3 (commit bd07139a6,
Apache License 2.0). Requests are checked against it, and so are the answers of this server. `make registry` has the
registry's own server.
"""

from __future__ import annotations

import itertools
import json
import re
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import yaml

from tests.tracking.faulty import Answer, body

API = "/api/model_registry/v1alpha3"
DESCRIPTION = yaml.load((Path(__file__).parent / "model-registry.yaml").read_text(), Loader=yaml.CSafeLoader)
KINDS = {"registered_model": "RegisteredModel", "model_version": "ModelVersion", "model_artifact": "ModelArtifact"}


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """A part of the description, wherever it stands."""
    while "$ref" in schema:
        found: Any = DESCRIPTION
        for name in schema["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        schema = found
    return schema


def properties_of(schema: dict[str, Any]) -> dict[str, Any]:
    """The properties of a schema and of all that it consists of."""
    schema = resolved(schema)
    found = {name: one for part in schema.get("allOf", ()) for name, one in properties_of(part).items()}
    return found | schema.get("properties", {})


def required_of(schema: dict[str, Any]) -> set[str]:
    schema = resolved(schema)
    return set(schema.get("required", ())).union(*map(required_of, schema.get("allOf", ())))


def mistake_in(value: Any, schema: dict[str, Any], path: str = "") -> str:
    """Why a value does not fit the description; an unknown property is a mistake, as the server says too."""
    schema = resolved(schema)
    if "discriminator" in schema:
        named = schema["discriminator"]
        kind = named["mapping"].get(value.get(named["propertyName"])) if isinstance(value, dict) else None
        return mistake_in(value, {"$ref": kind}, path) if kind else f"{path}: no {named['propertyName']}"
    kinds = {"string": str, "boolean": bool, "number": (int, float), "integer": int, "array": list, "object": dict}
    kind = schema.get("type", "object" if "allOf" in schema or "properties" in schema else "")
    if kind and (not isinstance(value, kinds[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return f"{path}: {value!r} is not of the type {kind}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{path}: {value!r} is none of {schema['enum']}"
    if isinstance(value, str) and not (
        len(value) >= schema.get("minLength", 0) and re.search(schema.get("pattern", ""), value)
    ):
        return f"{path}: {value!r} has another form"
    if isinstance(value, list):
        found = (mistake_in(inner, schema.get("items", {}), f"{path}[{k}]") for k, inner in enumerate(value))
        return next(filter(None, found), "")
    if not isinstance(value, dict):
        return ""
    known, more = properties_of(schema), schema.get("additionalProperties")
    for name in required_of(schema) - value.keys():
        return f"{path}.{name}: is missing"
    for name, inner in value.items():
        if name not in known and not isinstance(more, dict):
            return f"{path}.{name}: is unknown"
        if found := mistake_in(inner, known.get(name, more), f"{path}.{name}"):
            return found
    return ""


class Registry:
    """Holds entries, and answers requests that fit the description."""

    def __init__(self, token: str = "") -> None:
        self.held: dict[str, dict[str, dict[str, Any]]] = {kind: {} for kind in KINDS}
        self.refused: list[str] = []
        self.token = token
        self._ids = itertools.count(1)

    @property
    def answer(self) -> Answer:
        return self._handle

    @property
    def racing(self) -> Answer:
        """Answers as if another process had created each entry a moment before."""

        def answer(handler: BaseHTTPRequestHandler) -> None:
            length = int(handler.headers.get("Content-Length") or 0)
            given = json.loads(handler.rfile.read(length)) if length else None
            status, found = self._answered(handler, given)
            if status == 201:
                status, found = 409, {"code": "409", "message": "exists"}
            body(status, json.dumps(found).encode(), Content_Type="application/json")(handler)

        return answer

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        given = json.loads(handler.rfile.read(length)) if length else None
        status, found = self._answered(handler, given)
        if status >= 400:
            self.refused.append(f"{handler.command} {handler.path}: {found}")
        body(status, json.dumps(found).encode(), Content_Type="application/json")(handler)

    def _answered(self, handler: BaseHTTPRequestHandler, given: Any) -> tuple[int, dict[str, Any]]:
        if self.token and handler.headers.get("Authorization") != f"Bearer {self.token}":
            return 401, {"code": "401", "message": "no token"}
        parts = urlsplit(handler.path)
        operation, place = self._operation(handler.command, parts.path)
        if operation is None:
            return 405, {"code": "405", "message": "no such operation"}
        if handler.command == "GET" and place["id"]:
            return self._versions(place["id"], dict(parse_qsl(parts.query)))
        if handler.command == "GET":
            return self._found(place["kind"], dict(parse_qsl(parts.query)))
        schema = operation["requestBody"]
        content = resolved(schema)["content"]["application/json"]["schema"]
        if mistake := mistake_in(given, content):
            return 400, {"code": "400", "message": mistake}
        return self._kept(handler.command, place, given)

    def _operation(self, method: str, path: str) -> tuple[Any, dict[str, str]]:
        for pattern, operations in DESCRIPTION["paths"].items():
            expression = re.sub(r"\\?\{\w+\\?\}", "([1-9][0-9]*)", re.escape(pattern).replace(r"\_", "_"))
            if (match := re.fullmatch(expression, path)) and method.lower() in operations:
                names = pattern.removeprefix(f"{API}/").split("/")
                kind = "model_artifact" if names[-1] == "artifacts" else names[0].removesuffix("s")
                return operations[method.lower()], {"kind": kind, "id": match[1] if match.groups() else ""}
        return None, {}

    def _found(self, kind: str, query: dict[str, str]) -> tuple[int, dict[str, Any]]:
        for entry in self.held[kind].values():
            parent = entry.get("registeredModelId", entry.get("_parent", ""))
            if entry["name"] == query["name"] and parent == query.get("parentResourceId", ""):
                return 200, self._shown(kind, entry)
        return 404, {"code": "404", "message": "no such entry"}

    def _versions(self, model: str, query: dict[str, str]) -> tuple[int, dict[str, Any]]:
        """The versions of a model, the newest first if it is asked for."""
        found = [one for one in self.held["model_version"].values() if one["registeredModelId"] == model]
        if (query.get("orderBy"), query.get("sortOrder")) == ("CREATE_TIME", "DESC"):
            found = found[::-1]
        size = int(query["pageSize"])
        shown = [self._shown("model_version", one) for one in found[:size]]
        answer = {"items": shown, "size": len(shown), "pageSize": size, "nextPageToken": ""}
        assert mistake_in(answer, {"$ref": "#/components/schemas/ModelVersionList"}) == ""
        return 200, answer

    def _kept(self, method: str, place: dict[str, str], given: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        kind = place["kind"]
        if method == "PATCH":
            if place["id"] not in self.held[kind]:
                return 404, {"code": "404", "message": "no such entry"}
            self.held[kind][place["id"]] |= given
            return 200, self._shown(kind, self.held[kind][place["id"]])
        parent = {"_parent": place["id"]} if kind == "model_artifact" else {}
        if kind == "model_artifact" and place["id"] not in self.held["model_version"]:
            return 404, {"code": "404", "message": "no such version"}
        entry = {**given, **parent, "id": str(next(self._ids))}
        self.held[kind][entry["id"]] = entry
        return 201, self._shown(kind, entry)

    def _shown(self, kind: str, entry: dict[str, Any]) -> dict[str, Any]:
        shown = {name: value for name, value in entry.items() if not name.startswith("_")}
        assert mistake_in(shown, {"$ref": f"#/components/schemas/{KINDS[kind]}"}) == ""
        return shown
