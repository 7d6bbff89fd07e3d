"""The settings of the limits: bounds that keep one client, or one mistake, from taking everything."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any, Final, Literal

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from proxy.settings.section import NEW_SESSIONS, Section, misplaced
from proxy.settings.values import Duration, Network, duration, size

Action = Literal["delay", "refuse", "disconnect"]
ByteAction = Literal["delay", "disconnect"]

ALL: Final = "all"
# What stands in imap/commands.py: the floors forbid to import it here, and a test compares them.
COMMAND_CLASSES: Final = (
    ALL,
    *("APPEND", "AUTHENTICATE", "CAPABILITY", "CHECK", "CLOSE", "COMPRESS", "COPY", "CREATE", "DELETE", "DELETEACL"),
    *("ENABLE", "ESEARCH", "EXAMINE", "EXPUNGE", "FETCH", "GETACL", "GETMETADATA", "GETQUOTA", "GETQUOTAROOT", "ID"),
    *("IDLE", "LIST", "LISTRIGHTS", "LOGIN", "LOGOUT", "LSUB", "MOVE", "MYRIGHTS", "NAMESPACE", "NOOP", "NOTIFY"),
    *("OTHER", "RENAME", "REPLACE", "SEARCH", "SELECT", "SETACL", "SETMETADATA", "SETQUOTA", "SORT", "STARTTLS"),
    *("STATUS", "STORE", "SUBSCRIBE", "THREAD", "UID COPY", "UID EXPUNGE", "UID FETCH", "UID MOVE", "UID REPLACE"),
    *("UID SEARCH", "UID SORT", "UID STORE", "UID THREAD", "UNAUTHENTICATE", "UNSELECT", "UNSUBSCRIBE"),
)

_Period = Annotated[float, duration(least="1s", most="1d")]
_PERIOD = "The time that `rate` is for. After a pause so long the whole of it may come at once."


class LoginRate(Section):
    """How many logins there may be by time. Those that succeed count; failures have limits of their own."""

    rate: int = Field(
        ge=1,
        le=1_000_000,
        description="How many; further ones are refused with LIMIT until some time has gone by.",
        examples=[60],
        json_schema_extra=NEW_SESSIONS,
    )
    per: _Period = Field(default=60.0, description=_PERIOD, json_schema_extra=NEW_SESSIONS)


class CommandRate(Section):
    """How many commands there may be by time; in place of one such limit there may be one for each of some commands."""

    rate: int = Field(
        ge=1, le=1_000_000_000, description="How many commands.", examples=[2000], json_schema_extra=NEW_SESSIONS
    )
    per: _Period = Field(default=60.0, description=_PERIOD, json_schema_extra=NEW_SESSIONS)
    action: Action = Field(
        default="delay",
        description="delay: the session waits, nothing is lost. refuse: the command is answered NO. disconnect: the "
        "session ends with BYE.",
        json_schema_extra=NEW_SESSIONS,
    )


class ByteRate(Section):
    """How much a user's sessions may carry by time, both directions together."""

    rate: Annotated[int, size(least="64KiB", most="1000TiB")] = Field(
        description="How much.", examples=["500MiB"], json_schema_extra=NEW_SESSIONS
    )
    per: _Period = Field(default=3600.0, description=_PERIOD, json_schema_extra=NEW_SESSIONS)
    action: ByteAction = Field(
        default="delay",
        description="delay: the session waits, nothing is lost. disconnect: it ends, with BYE unless a response is "
        "being sent.",
        json_schema_extra=NEW_SESSIONS,
    )


class _ByCommand:
    """The spelling of limits by command, of which `{rate: …}` is the short form: one for all."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(_by_command, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        by_command = handler(schema)
        one = by_command["additionalProperties"]
        return {"anyOf": [one, {**by_command, "propertyNames": {"enum": list(COMMAND_CLASSES)}, "minProperties": 1}]}


def _by_command(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if not value or value.keys() & CommandRate.model_fields.keys():
        return {ALL: value}
    for name in value:
        if name not in COMMAND_CLASSES:
            known = {each.casefold(): each for each in COMMAND_CLASSES}
            near = get_close_matches(str(name).casefold(), known, 1)
            hint = f'did you mean "{known[near[0]]}"?' if near else "all is one, and SEARCH, APPEND, UID FETCH are"
            raise misplaced(str(name), f"no command that is told apart; {hint}")
    return value


CommandRates = Annotated[dict[str, CommandRate], _ByCommand()]


class FailuresPerAddress(Section):
    """Failed logins from one address. The same name with the same wrong secret counts once."""

    count: int = Field(
        default=20,
        ge=1,
        le=1_000_000,
        description="So many, and logins from there are refused until some of them are older than `per`. Users who "
        "have logged in from there before are not held up by what others do.",
        json_schema_extra=NEW_SESSIONS,
    )
    per: Duration = Field(default=600.0, description="How long a failure counts.", json_schema_extra=NEW_SESSIONS)
    ipv6_prefix: int = Field(
        default=64, ge=32, le=128, description="What counts as one address in IPv6.", json_schema_extra=NEW_SESSIONS
    )


class FailuresPerUser(Section):
    """Wrong secrets for one name from one network. Only different ones count: a device that tries its old password
    again and again guesses nothing.
    """

    count: int = Field(
        default=10,
        ge=1,
        le=1_000_000,
        description="So many, and logins for that name from that network are refused until some of them are older than "
        "`per`. From elsewhere the owner still gets in.",
        json_schema_extra=NEW_SESSIONS,
    )
    per: Duration = Field(default=600.0, description="How long a failure counts.", json_schema_extra=NEW_SESSIONS)
    ipv4_prefix: int = Field(
        default=24, ge=8, le=32, description="What counts as one network in IPv4.", json_schema_extra=NEW_SESSIONS
    )
    ipv6_prefix: int = Field(
        default=56, ge=32, le=128, description="What counts as one network in IPv6.", json_schema_extra=NEW_SESSIONS
    )


class LoginsPerBackend(Section):
    """Logins under way at one backend."""

    at_once: int = Field(
        default=100,
        ge=1,
        le=100_000,
        description="How many of them a backend has to carry at a time.",
        json_schema_extra=NEW_SESSIONS,
    )
    waiting: int = Field(
        default=1000,
        ge=0,
        le=1_000_000,
        description="How many more may wait for their turn, at most `timeouts.backend_login`; others are told "
        "UNAVAILABLE.",
        json_schema_extra=NEW_SESSIONS,
    )
    slow_start: Annotated[float, duration(least="0s", most="1h")] = Field(
        default=30.0,
        description="After a backend was down, `at_once` grows from a tenth to the whole within this time.",
        json_schema_extra=NEW_SESSIONS,
    )


class Limits(Section):
    """Bounds that keep one client, or one mistake, from taking everything."""

    connections: int = Field(
        default=20000,
        ge=1,
        le=10_000_000,
        description="Client connections, all together, over all workers. Each may need two descriptors: where a worker "
        "may have fewer, the log says how many clients there is room for.",
        json_schema_extra=NEW_SESSIONS,
    )
    connections_per_address: int = Field(
        default=200,
        ge=1,
        le=10_000_000,
        description="Client connections from one address, over all workers. A family, an office or a webmail server "
        "shares one.",
        json_schema_extra=NEW_SESSIONS,
    )
    ipv6_prefix: int = Field(
        default=64,
        ge=32,
        le=128,
        description="What counts as one address in IPv6, for `connections_per_address` and `logins_per_address`.",
        json_schema_extra=NEW_SESSIONS,
    )
    connections_per_user: int = Field(
        default=50,
        ge=1,
        le=10_000_000,
        description="Logged-in connections of one canonical name, over all workers. One mail program may hold ten.",
        json_schema_extra=NEW_SESSIONS,
    )
    connections_per_backend: Annotated[int, Field(ge=1, le=10_000_000)] | None = Field(
        default=None,
        description="Logged-in connections at one backend, over all workers: what it can carry. null: any number.",
        examples=[20000],
        json_schema_extra=NEW_SESSIONS,
    )
    handshakes_at_once: int = Field(
        default=500,
        ge=1,
        le=100_000,
        description="TLS handshakes under way in each worker; others wait for their turn. One that takes longer than "
        "2s holds up nobody.",
        json_schema_extra=NEW_SESSIONS,
    )
    logins_at_once: int = Field(
        default=500,
        ge=1,
        le=100_000,
        description="Logins under way in each worker; others wait for their turn, at most `timeouts.backend_login`, "
        "then they are told UNAVAILABLE. One that takes longer than 2s holds up nobody.",
        json_schema_extra=NEW_SESSIONS,
    )
    logins_per_address: LoginRate | None = Field(
        default=None,
        description="Logins from one address by time, over all workers; null: any number.",
        examples=[{"rate": 600, "per": "1m"}],
        json_schema_extra=NEW_SESSIONS,
    )
    logins_per_user: LoginRate | None = Field(
        default=None,
        description="Logins of one canonical name by time, over all workers; null: any number.",
        examples=[{"rate": 60, "per": "1m"}],
        json_schema_extra=NEW_SESSIONS,
    )
    commands_per_user: CommandRates | None = Field(
        default=None,
        description="Commands of one canonical name by time, over all its sessions; null: any number. Either one limit "
        "for all, or one for each of some commands: `{all: {rate: 2000}, SEARCH: {rate: 60}}`. `SEARCH` counts `UID "
        "SEARCH` too.",
        examples=[{"rate": 2000, "per": "1m", "action": "delay"}],
        json_schema_extra=NEW_SESSIONS,
    )
    commands_per_session: CommandRates | None = Field(
        default=None,
        description="Commands of one session by time, in the same way; null: any number.",
        examples=[{"rate": 1000, "per": "1m", "action": "delay"}],
        json_schema_extra=NEW_SESSIONS,
    )
    bytes_per_user: ByteRate | None = Field(
        default=None,
        description="What all sessions of one canonical name carry by time; null: any amount.",
        examples=[{"rate": "500MiB", "per": "1h", "action": "delay"}],
        json_schema_extra=NEW_SESSIONS,
    )
    login_tries: int = Field(
        default=5,
        ge=1,
        le=100,
        description="Failed logins after which a connection is closed. Refusals for other reasons, an outage above "
        "all, are no tries; twenty of any kind close it too.",
        json_schema_extra=NEW_SESSIONS,
    )
    failed_login_delay: Annotated[float, duration(least="0s", most="15s")] = Field(
        default=2.0,
        description="How long the answer to the first failed login waits; the second waits twice as long, and so on up "
        "to 15s. Shorter than `timeouts.login`.",
        json_schema_extra=NEW_SESSIONS,
    )
    login_failures_per_address: FailuresPerAddress = Field(
        default=FailuresPerAddress(),
        description="Failed logins from one address, over all its connections.",
        json_schema_extra=NEW_SESSIONS,
    )
    login_failures_per_user: FailuresPerUser = Field(
        default=FailuresPerUser(),
        description="Failed logins for one name from one network.",
        json_schema_extra=NEW_SESSIONS,
    )
    logins_per_backend: LoginsPerBackend = Field(
        default=LoginsPerBackend(),
        description="Logins under way at one backend.",
        json_schema_extra=NEW_SESSIONS,
    )
    exempt_networks: Annotated[tuple[Network, ...], Field(strict=False)] = Field(
        default=(),
        description="Clients whose connections, logins and failures are not counted by address: a webmail server, "
        "monitoring.",
        examples=[["10.0.0.8/32"]],
        json_schema_extra=NEW_SESSIONS,
    )
