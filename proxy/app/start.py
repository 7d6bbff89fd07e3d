"""From a settings file to a running master; or from an inheritance, where the program has been upgraded."""

from __future__ import annotations

import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, MutableMapping
from pathlib import Path

from proxy import __version__
from proxy.app.doors import Doors
from proxy.app.household import Household
from proxy.app.master import EXIT_FAILED, SIGNALS, Master
from proxy.app.notify import Notifier
from proxy.app.plan import Roles
from proxy.app.preflight import preflight
from proxy.app.process import harden, raise_descriptors
from proxy.app.renewal import Renewal
from proxy.app.sockets import Sockets
from proxy.app.succession import Patience
from proxy.app.upgrade import Inheritance, inherited
from proxy.limits.board import Board
from proxy.observe import metrics
from proxy.observe.log import configure, restore
from proxy.settings.loader import load
from proxy.settings.mistakes import SettingsError
from proxy.settings.models import Log
from proxy.transport.listen import BindFailed
from proxy.transport.tls import OPENSSL_VERSION

_KEY_BYTES = 32


def serve_with(
    config: Path,
    roles: Roles,
    patience: Patience | None = None,
    environment: MutableMapping[str, str] = os.environ,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Run until a signal ends it. Gives the exit status.

    Args:
        environment: Where a service manager, or the program before an upgrade, has left something for us. It is taken
            out of it, where it is for nobody else.
    """
    # Whoever stops us before there are handlers must not find the default action, which leaves children behind.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # for which others open their logs anew
    harden()
    raise_descriptors()
    patience = patience or Patience()
    try:
        inheritance = inherited(environment)
        if inheritance is not None:
            return _go_on(inheritance, config, roles, patience, environment, clock)
        return _serve_anew(config, roles, patience, environment, clock)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        restore()  # writes what waits; and what is raised from here on, a bug at start among it, goes to standard error


def _serve_anew(
    config: Path,
    roles: Roles,
    patience: Patience,
    environment: MutableMapping[str, str],
    clock: Callable[[], float],
) -> int:
    read_at = time.time()
    try:
        settings = load(config)
        preflight(settings, config)
    except SettingsError as exc:
        print(exc, file=sys.stderr)
        return EXIT_FAILED
    _speak(settings.log)
    sockets = Sockets()
    sockets.adopt(settings, environment)
    household = Household(roles, sockets, Board.create(), clock)
    notifier = Notifier(environment)
    key = secrets.token_bytes(_KEY_BYTES)
    renewal = Renewal(config, household, Doors(config), notifier, key, patience, clock)
    try:
        renewal.first(settings, read_at)
    except (BindFailed, SettingsError) as exc:
        restore()
        print(exc, file=sys.stderr)
        return EXIT_FAILED
    return Master(household, renewal, notifier, patience, clock).run()


def _go_on(
    inheritance: Inheritance,
    config: Path,
    roles: Roles,
    patience: Patience,
    environment: MutableMapping[str, str],
    clock: Callable[[], float],
) -> int:
    _speak(inheritance.log)
    household, current = inheritance.household(roles, clock)
    notifier = Notifier(environment)
    renewal = Renewal(config, household, Doors(config), notifier, inheritance.throttle_key, patience, clock)
    renewal.go_on(current, inheritance.number)
    return Master(household, renewal, notifier, patience, clock, upgraded=True).run()


def _speak(log: Log) -> None:
    configure(log.format, log.level, threaded=False)
    metrics.set_build_info(__version__, OPENSSL_VERSION)
