"""What each verb may be asked, as types: queries of those that look, bodies of those that change something.

Numbers have bounds, texts have ends, and unknown keys are mistakes. The command line makes the same questions that the
API reads, so neither can ask what the other would not understand.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

MAX_REASON_CHARACTERS = 200
MAX_NAME_CHARACTERS = 512
MAX_WEIGHT = 1000
MAX_OVER_SECONDS = 86400.0
MAX_FOR_SECONDS = 30 * 86400.0
MAX_TRACE_SECONDS = 3600.0

Name = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME_CHARACTERS)]


def _address(text: str) -> str:
    """An address as it is written of sessions: IPv6 in small letters, IPv4 never inside it."""
    try:
        address = ip_address(text)
    except ValueError:
        raise PydanticCustomError("address", "expected an IP address, e.g. 192.0.2.7") from None
    return str(getattr(address, "ipv4_mapped", None) or address)


Address = Annotated[str, StringConstraints(max_length=64), AfterValidator(_address)]


class Question(BaseModel):
    """What one verb is asked; it has no key but these."""

    # Built when first asked for, by the one process that is asked.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)


class Nothing(Question):
    """The path says it all."""


# --- to see ---


class Sessions(Question):
    """Which sessions are listed: those to which all that is given applies."""

    user: Name | None = Field(default=None, description="Of this user.")
    backend: Name | None = Field(default=None, description="At this backend.")
    address: Address | None = Field(default=None, description="Of clients at this address.")
    listener: Name | None = Field(default=None, description="Of this listener.")
    worker: Name | None = Field(default=None, description="In this worker process.")
    limit: int = Field(default=100, ge=1, le=1000, description="At most so many.")
    after: Name | None = Field(default=None, description="Those that come after this one: `next` of an answer before.")


class OneSession(Question):
    """A session."""

    session: Name = Field(description="Its id.")


class Users(Question):
    """How many users are listed."""

    limit: int = Field(default=50, ge=1, le=1000, description="At most so many, those with the most sessions first.")


class Top(Question):
    """How many users are listed."""

    limit: int = Field(default=20, ge=1, le=200, description="At most so many of each kind, the busiest first.")


class OneUser(Question):
    """A user."""

    name: Name = Field(description="His name, in any spelling that he could log in with.")


# --- to steer ---


class Change(Question):
    """Something is to change: somebody says why."""

    reason: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_REASON_CHARACTERS)] = (
        Field(description="Why, for the log.")
    )


class Kick(Change):
    """Whose sessions end: exactly one of the four is given."""

    session: Name | None = Field(default=None, description="This session.")
    user: Name | None = Field(default=None, description="All sessions of this user.")
    address: Address | None = Field(default=None, description="All sessions of clients at this address.")
    backend: Name | None = Field(default=None, description="All sessions at this backend.")

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if sum(given is not None for given in (self.session, self.user, self.address, self.backend)) != 1:
            raise PydanticCustomError("whom", "expected exactly one of session, user, address and backend")
        return self


class OneBackend(Change):
    """A backend."""

    backend: Name = Field(description="Its name.")


class Drain(OneBackend):
    """A backend, and whether those who are there have to leave."""

    over_seconds: float | None = Field(
        default=None,
        ge=0,
        le=MAX_OVER_SECONDS,
        description="Users with sessions there move within so long; null: they stay until they leave by themselves.",
    )


class Weight(OneBackend):
    """A backend and its weight."""

    weight: int = Field(ge=0, le=MAX_WEIGHT, description="Its share of users, relative to the others. 0: no new ones.")


class Move(Change):
    """A user, and where he is to live."""

    user: Name = Field(description="His name.")
    backend: Name = Field(description="Where he is to go.")
    for_seconds: float | None = Field(
        default=None, gt=0, le=MAX_FOR_SECONDS, description="For so long; null: until he is released."
    )


class Hold(Change):
    """A user who is not to log in."""

    user: Name = Field(description="His name.")
    for_seconds: float | None = Field(
        default=None, gt=0, le=MAX_FOR_SECONDS, description="For so long; null: until he is released."
    )


class Release(Change):
    """A user who was moved or held."""

    user: Name = Field(description="His name.")


class LogLevel(Change):
    """How much is logged."""

    level: Literal["debug", "info", "warning", "error"] = Field(description="The least important that is written.")


class Trace(Change):
    """Whose protocol lines are shown, for how long."""

    user: Name = Field(description="His name.")
    seconds: float = Field(default=60.0, ge=1, le=MAX_TRACE_SECONDS, description="For so long.")


class Untrace(Change):
    """A trace that is to end."""

    trace: Name = Field(description="Its id, as `trace` has answered it.")
