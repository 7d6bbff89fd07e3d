"""What every section of the settings is made of."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

LIVE: Final[dict[str, Any]] = {"takes_hold": "live"}
NEW_SESSIONS: Final[dict[str, Any]] = {"takes_hold": "new sessions"}
RELOAD: Final[dict[str, Any]] = {"takes_hold": "reload"}


def misplaced(key: str, problem: str) -> PydanticCustomError:
    """The error of a validator that looks at several keys of a section and blames one of them."""
    return PydanticCustomError("misplaced", "{problem}", {"key": key, "problem": problem})


class Section(BaseModel):
    """A mapping of known keys; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=False)
