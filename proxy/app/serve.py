"""`imap-porter serve`: from a settings file to a running process."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import trio

from proxy import __version__
from proxy.app.preflight import preflight
from proxy.app.worker import Worker, open_doors
from proxy.observe import metrics
from proxy.observe.log import configure, get_logger, restore
from proxy.settings.loader import load
from proxy.settings.mistakes import SettingsError
from proxy.transport.listen import BindFailed
from proxy.transport.tls import OPENSSL_VERSION

log = get_logger()

EXIT_FAILED = 1
# How long a thread that asks a directory may keep the event loop from the interpreter, in place of Python's 5 ms. Where
# there are no such threads it would only cost: 5 % of a login.
_SWITCH_SECONDS = 0.0002


def serve(config: Path) -> int:
    """Run until a signal ends it. Gives the exit status."""
    try:
        settings = load(config)
        preflight(settings, config)
    except SettingsError as exc:
        print(exc, file=sys.stderr)
        return EXIT_FAILED
    configure(settings.log.format, settings.log.level)
    metrics.set_build_info(__version__, OPENSSL_VERSION)
    failed: list[str] = []
    try:
        doors = open_doors(settings)
        worker = Worker(settings, doors)
        # What was made so far lives as long as the process: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        if any(source.ldap is not None for source in settings.identity):
            sys.setswitchinterval(_SWITCH_SECONDS)
        trio.run(worker.run)
    except* (BindFailed, SettingsError) as group:
        failed = [str(exc) for exc in _leaves(group)]
    finally:
        restore()  # writes what waits; and what is raised from here on, a bug at start among it, goes to standard error
    for text in failed:
        print(text, file=sys.stderr)
    return EXIT_FAILED if failed else 0


def _leaves(group: BaseExceptionGroup[Exception]) -> list[Exception]:
    """The exceptions in a group, of any depth (nurseries nest them)."""
    found = []
    for exc in group.exceptions:
        found += _leaves(exc) if isinstance(exc, BaseExceptionGroup) else [exc]
    return found
