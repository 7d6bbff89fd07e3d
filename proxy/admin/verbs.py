"""The table of verbs: what may be asked of a running proxy, and who may. The API and the command line are made from it.

verb = VERBS["drain"]
question = verb.ask(backend="d1", reason="new disks")      # checked as the proxy will
verb.method, verb.target(question), verb.body(question)    # POST /v1/drain {"backend":"d1","reason":"new disks"}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import quote, urlencode

from pydantic import ValidationError

from proxy.admin import answers, questions
from proxy.admin.questions import Question

EVENTS_PATH = "/v1/events"
EVENTS_SUBPROTOCOL = "porter.events"
BEARER_SUBPROTOCOL = "bearer."  # and the token in base64url without padding: browsers can send no header
_MOST_MISTAKES = 5


class Role(StrEnum):
    """What somebody may do: look on, or change things too."""

    VIEWER = "viewer"
    OPERATOR = "operator"

    def may(self, needed: Role) -> bool:
        """Whether it is enough."""
        return self is Role.OPERATOR or needed is Role.VIEWER


class Unusable(ValueError):
    """What is asked makes no sense. The text is for whoever asks."""


@dataclass(frozen=True, slots=True)
class Verb:
    """Something that may be asked."""

    name: str
    method: Literal["GET", "POST"]
    path: str  # a part in braces is a key of the question
    question: type[Question]
    answer: type[answers.Answer]
    help: str  # one sentence

    @property
    def role(self) -> Role:
        """Who may ask."""
        return Role.VIEWER if self.method == "GET" else Role.OPERATOR

    @property
    def key(self) -> str:
        """The key of the question that the path holds; "": none."""
        return self.path.partition("{")[2].rstrip("}")

    def ask(self, **values: Any) -> Question:
        """The question, from values as Python has them.

        Raises:
            Unusable: There is a mistake.
        """
        return self._checked(lambda: self.question.model_validate(values))

    def read_query(self, values: Mapping[str, str]) -> Question:
        """The question, from the texts of a query and of the path.

        Raises:
            Unusable: There is a mistake.
        """
        return self._checked(lambda: self.question.model_validate_strings(values, strict=False))

    def read_body(self, body: bytes) -> Question:
        """The question, from JSON.

        Raises:
            Unusable: There is a mistake.
        """
        return self._checked(lambda: self.question.model_validate_json(body))

    def target(self, question: Question) -> str:
        """The path to ask, and the query."""
        values = {} if self.method == "POST" else question.model_dump(exclude_defaults=True)
        path = self.path
        if self.key:
            path = path.replace(f"{{{self.key}}}", quote(str(values.pop(self.key)), safe=""))
        return f"{path}?{urlencode(values)}" if values else path

    def body(self, question: Question) -> bytes | None:
        """The body to send; None: there is none."""
        if self.method == "GET":
            return None
        return json.dumps(question.model_dump(exclude_defaults=True), separators=(",", ":")).encode("ascii")

    def _checked(self, read: Any) -> Question:
        try:
            question: Question = read()
        except ValidationError as exc:
            raise Unusable("; ".join(self._mistakes(exc))) from None
        return question

    def _mistakes(self, exc: ValidationError) -> list[str]:
        """What is wrong, without what was sent."""
        told = []
        for mistake in exc.errors(include_url=False, include_input=False, include_context=False)[:_MOST_MISTAKES]:
            where = ".".join(map(str, mistake["loc"]))
            match mistake["type"]:
                case "json_invalid":
                    told.append("the body is no JSON")
                case "model_type":
                    told.append("the body is no JSON object")
                case "extra_forbidden":
                    told.append(f"{where[:50]}: unknown; known: {', '.join(self.question.model_fields) or 'nothing'}")
                case "missing" if where == "reason":
                    told.append("reason: missing; say why, for the log")
                case _:
                    told.append(f"{where}: {mistake['msg']}" if where else mistake["msg"])
        return told


_TABLE = (
    Verb("status", "GET", "/v1/status", questions.Nothing, answers.Status, "The proxy and its processes."),
    Verb(
        "generations",
        "GET",
        "/v1/generations",
        questions.Nothing,
        answers.Generations,
        "The workers of each reload that still have sessions.",
    ),
    Verb("backends", "GET", "/v1/backends", questions.Nothing, answers.Backends, "Every backend, with its health."),
    Verb("sessions", "GET", "/v1/sessions", questions.Sessions, answers.SessionList, "Sessions, page by page."),
    Verb(
        "session",
        "GET",
        "/v1/sessions/{session}",
        questions.OneSession,
        answers.SessionDetails,
        "One session, and what its worker knows of it.",
    ),
    Verb("users", "GET", "/v1/users", questions.Users, answers.UserList, "Who is there, by number of sessions."),
    Verb("top", "GET", "/v1/top", questions.Top, answers.TopList, "The busiest users, backends and commands just now."),
    Verb(
        "route",
        "GET",
        "/v1/route/{name}",
        questions.OneUser,
        answers.Route,
        "Where a user goes at his next login, and why.",
    ),
    Verb(
        "explain",
        "GET",
        "/v1/explain/{name}",
        questions.OneUser,
        answers.Explanation,
        "All that is known of a user: route, orders, limits, sessions, failures.",
    ),
    Verb(
        "limits", "GET", "/v1/limits", questions.Nothing, answers.Limits, "The limits, and how often each was reached."
    ),
    Verb(
        "settings",
        "GET",
        "/v1/settings",
        questions.Nothing,
        answers.Settings,
        "The settings in effect, without secrets.",
    ),
    Verb("figures", "GET", "/v1/figures", questions.Nothing, answers.Figures, "What is counted, for live charts."),
    Verb(
        "openapi", "GET", "/v1/openapi.json", questions.Nothing, answers.Document, "This API, as an OpenAPI document."
    ),
    Verb("kick", "POST", "/v1/kick", questions.Kick, answers.Kicked, "End sessions; the user may log in again."),
    Verb(
        "drain",
        "POST",
        "/v1/drain",
        questions.Drain,
        answers.BackendChanged,
        "No new users for a backend, and those that are there may be moved.",
    ),
    Verb("undrain", "POST", "/v1/undrain", questions.OneBackend, answers.BackendChanged, "A backend serves as before."),
    Verb("down", "POST", "/v1/down", questions.OneBackend, answers.BackendChanged, "A backend is not to be used."),
    Verb(
        "weight",
        "POST",
        "/v1/weight",
        questions.Weight,
        answers.BackendChanged,
        "A backend's share of users.",
    ),
    Verb("move", "POST", "/v1/move", questions.Move, answers.Moved, "A user lives at this backend from now on."),
    Verb(
        "hold",
        "POST",
        "/v1/hold",
        questions.Hold,
        answers.Held,
        "A user's logins are refused for now, and his sessions end.",
    ),
    Verb("release", "POST", "/v1/release", questions.Release, answers.Released, "Undo move and hold."),
    Verb("reload", "POST", "/v1/reload", questions.Change, answers.Reloaded, "Read the settings anew."),
    Verb(
        "log-level",
        "POST",
        "/v1/log-level",
        questions.LogLevel,
        answers.LevelSet,
        "How much all processes log, until the next reload.",
    ),
    Verb(
        "trace",
        "POST",
        "/v1/trace",
        questions.Trace,
        answers.Traced,
        "Show a user's protocol lines, without secrets and bodies, as events.",
    ),
    Verb("untrace", "POST", "/v1/untrace", questions.Untrace, answers.Untraced, "End a trace."),
)
VERBS: Mapping[str, Verb] = MappingProxyType({verb.name: verb for verb in _TABLE})
CHANGES = tuple(verb.name for verb in _TABLE if verb.method == "POST")  # the verbs that change something
