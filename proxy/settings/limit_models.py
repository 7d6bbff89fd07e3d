"""The settings of the limits: bounds that keep one client, or one mistake, from taking everything."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from proxy.settings.section import NEW_SESSIONS, RESTART, Section
from proxy.settings.values import Duration, Network, duration


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
        description="Client connections, all together. Each may need two descriptors: where the process may have "
        "fewer, the log says how many clients there is room for.",
        json_schema_extra=RESTART,
    )
    connections_per_address: int = Field(
        default=200,
        ge=1,
        le=10_000_000,
        description="Client connections from one address (IPv6: from one /64). A family, an office or a webmail server "
        "shares one.",
        json_schema_extra=NEW_SESSIONS,
    )
    connections_per_user: int = Field(
        default=50,
        ge=1,
        le=10_000_000,
        description="Logged-in connections of one canonical name. One mail program may hold ten.",
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
        description="Clients whose connections and failures are not counted by address: a webmail server, monitoring.",
        examples=[["10.0.0.8/32"]],
        json_schema_extra=NEW_SESSIONS,
    )
