"""The OpenAPI document says of every verb what the table says, and nothing that is not there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from proxy.admin.answers import Problem
from proxy.admin.openapi import openapi_document
from proxy.admin.verbs import EVENTS_PATH, VERBS, Role, Verb

DOCUMENT = openapi_document()
SCHEMAS = DOCUMENT["components"]["schemas"]


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from ([value["$ref"]] if "$ref" in value else [])
        for each in value.values():
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


def test_it_is_a_document_of_openapi() -> None:
    assert DOCUMENT.keys() == {"openapi", "info", "security", "paths", "components"}
    assert re.fullmatch(r"3\.1\.\d+", DOCUMENT["openapi"])
    assert DOCUMENT["info"].keys() >= {"title", "version"}
    assert DOCUMENT["security"] == [{"token": []}]
    assert DOCUMENT["components"]["securitySchemes"]["token"] == {"type": "http", "scheme": "bearer"}
    json.dumps(DOCUMENT)


def test_every_schema_is_there_and_of_use() -> None:
    used = set(references(DOCUMENT))
    assert used == {f"#/components/schemas/{name}" for name in SCHEMAS}


def test_it_has_the_verbs_and_nothing_else() -> None:
    told = {(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert told == {(verb.path, verb.method.lower()) for verb in VERBS.values()} | {(EVENTS_PATH, "get")}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_a_verb(verb: Verb) -> None:
    operation = DOCUMENT["paths"][verb.path][verb.method.lower()]
    assert (operation["operationId"], operation["summary"], operation["tags"]) == (verb.name, verb.help, [verb.role])
    answers = operation["responses"]
    assert _model(answers["200"]) == verb.answer.__name__
    assert {_model(answers[status]) for status in answers if status != "200"} == {Problem.__name__}
    assert answers.keys() == {"200", "400", "401", "403", "404", "409", "413", "422", "429", "503"}
    if verb.method == "POST":
        assert verb.role is Role.OPERATOR
        assert operation["requestBody"]["required"] is True
        assert _model(operation["requestBody"]) == verb.question.__name__
        schema = SCHEMAS[verb.question.__name__]
        assert schema["additionalProperties"] is False
        assert set(schema["properties"]) == set(verb.question.model_fields)
        assert "reason" in schema["required"]
    else:
        assert verb.role is Role.VIEWER
        assert "requestBody" not in operation
        parameters = {each["name"]: each for each in operation["parameters"]}
        assert parameters.keys() == verb.question.model_fields.keys()
        for name, field in verb.question.model_fields.items():
            in_path = f"{{{name}}}" in verb.path
            assert parameters[name]["in"] == ("path" if in_path else "query")
            assert parameters[name]["required"] is field.is_required()
            assert parameters[name]["description"] == field.description


def _model(content: dict[str, Any]) -> str:
    schema: dict[str, str] = content["content"]["application/json"]["schema"]
    return schema["$ref"].rpartition("/")[2]
