"""The API as an OpenAPI 3.1 document, made from the table of verbs and the types of questions and answers."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from proxy import __version__
from proxy.admin.answers import Problem
from proxy.admin.guard import MAX_BODY_BYTES
from proxy.admin.verbs import EVENTS_PATH, EVENTS_SUBPROTOCOL, VERBS, Verb

_REFERENCE = "#/components/schemas/{model}"
_PROBLEMS = {
    400: "The question has a mistake.",
    401: "There is no token, or nobody has it.",
    403: "The caller's role, Host or Origin is not let in.",
    404: "There is nothing of that name.",
    409: "It cannot be done as things are.",
    413: f"The body is larger than {MAX_BODY_BYTES} octets.",
    422: "The name is none, or nobody knows it.",
    429: "Too many wrong tokens of this address; Retry-After says how long to wait.",
    503: "Something that is asked is out.",
}


@cache
def openapi_document() -> dict[str, Any]:
    """The document; not to be changed."""
    models: list[type[BaseModel]] = [Problem]
    for verb in VERBS.values():
        models += [verb.answer] if verb.method == "GET" else [verb.answer, verb.question]
    schemas, definitions = models_json_schema(
        [(model, "validation") for model in dict.fromkeys(models)], ref_template=_REFERENCE
    )
    places: dict[Any, Any] = {model: schema for (model, _), schema in schemas.items()}
    paths: dict[str, Any] = {}
    for verb in VERBS.values():
        paths.setdefault(verb.path, {})[verb.method.lower()] = _operation(verb, places)
    paths[EVENTS_PATH] = {"get": _events()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "imap-porter", "version": __version__},
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(verb: Verb, places: dict[Any, Any]) -> dict[str, Any]:
    problem = {"application/json": {"schema": places[Problem]}}
    operation: dict[str, Any] = {
        "operationId": verb.name,
        "summary": verb.help,
        "tags": [verb.role],
        "responses": {
            "200": {"description": "Done.", "content": {"application/json": {"schema": places[verb.answer]}}},
            **{str(status): {"description": text, "content": problem} for status, text in _PROBLEMS.items()},
        },
    }
    if verb.method == "GET":
        operation["parameters"] = [*_parameters(verb)]
    else:
        body = {"application/json": {"schema": places[verb.question]}}
        operation["requestBody"] = {"required": True, "content": body}
    return operation


def _parameters(verb: Verb) -> list[dict[str, Any]]:
    schema = verb.question.model_json_schema()
    return [
        {
            "name": name,
            "in": "path" if name == verb.key else "query",
            "required": name in schema.get("required", ()),
            "description": described.pop("description", ""),
            "schema": described,
        }
        for name, described in schema["properties"].items()
    ]


def _events() -> dict[str, Any]:
    return {
        "operationId": "events",
        "summary": f"What happens, over a WebSocket (subprotocol {EVENTS_SUBPROTOCOL}): a JSON object a frame.",
        "parameters": [
            {
                "name": "kinds",
                "in": "query",
                "required": False,
                "description": "Which kinds, with commas between them; none given: all that the role may read.",
                "schema": {"type": "string"},
            }
        ],
        "responses": {"101": {"description": "Events follow."}},
    }
