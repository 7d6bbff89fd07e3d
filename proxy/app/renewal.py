"""Reading the settings anew, and having a new generation begin with them. All or nothing.

Mistakes in the settings, an address that cannot be had, processes that do not begin: in each case the old generation
goes on as if nobody had asked, and whoever asked is told why.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from proxy.app.changes import changed_keys
from proxy.app.children import Child, settle_memory
from proxy.app.cores import cores
from proxy.app.doors import Doors
from proxy.app.household import Household
from proxy.app.live_files import LiveFiles
from proxy.app.notify import Notifier
from proxy.app.plan import Plan
from proxy.app.preflight import admin_tls, preflight, users_files
from proxy.app.succession import Generation, Patience, Stage, Succession
from proxy.observe import metrics
from proxy.observe.log import configure, get_logger, set_level
from proxy.settings.loader import load
from proxy.settings.mistakes import SettingsError
from proxy.settings.models import Settings, Timeouts
from proxy.transport.listen import BindFailed

log = get_logger()

_MOST_MISTAKES = 50  # of those that are told
_MOST_TEXT = 5_000

Result = Literal["ok", "rejected", "failed"]
RESULTS: tuple[Result, ...] = ("ok", "rejected", "failed")

_RELOADS = metrics.counter(
    "porter_reloads_total",
    "Reloads of the settings. rejected: they have mistakes; failed: new processes did not begin. Either way the old "
    "ones went on.",
    result=RESULTS,
)
_LAST_RELOAD = metrics.gauge(
    "porter_settings_last_reload_timestamp_seconds", "When the settings in use were read, Unix time.", merge="max"
)


@dataclass(frozen=True, slots=True)
class Asked:
    """Somebody waits for the answer."""

    child: Child
    question: Any


class Renewal:
    """The generations, one after the other."""

    def __init__(
        self,
        config: Path,
        household: Household,
        doors: Doors,
        notifier: Notifier,
        throttle_key: bytes,
        patience: Patience,
        clock: Callable[[], float],
    ) -> None:
        """There is none yet."""
        self.config = config
        self.household = household
        self.throttle_key = throttle_key
        self.current: Generation | None = None
        self.number = 0  # of the last generation, be it that it never began
        self.succession: Succession | None = None
        self.files: LiveFiles | None = None
        self.last: dict[str, Any] = {}  # the last reload, for status
        self.wanted = False
        self._doors = doors
        self._notifier = notifier
        self._patience = patience
        self._clock = clock
        self._asked: list[Asked] = []  # for the next reload
        self._waiting: list[Asked] = []  # for the one under way
        self._read_at = 0.0
        self.on_serving: Callable[[], None] = lambda: None  # a generation has begun

    @property
    def failed_to_start(self) -> bool:
        """Whether the first generation did not begin."""
        return self.current is None and self.succession is None

    @property
    def timeouts(self) -> Timeouts:
        """Those of the current generation."""
        return Timeouts() if self.current is None else self.current.timeouts

    # --- beginning ---

    def first(self, settings: Settings, read_at: float) -> None:
        """Start the first generation.

        Args:
            read_at: When the settings began to be read, Unix time.
        Raises:
            BindFailed: An address cannot be listened on; nobody has been started.
        """
        self._read_at = read_at
        self._succeed(settings, listening=True)

    def go_on(self, current: Generation, number: int) -> None:
        """After an upgrade: these serve, and a generation of the new program is to follow them.

        Args:
            number: Of the last generation, be it that it never began.
        """
        self.current = current
        self.number = number
        self.want()

    def want(self, asked: Asked | None = None) -> None:
        """Reload as soon as nothing else is under way."""
        self.wanted = True
        if asked is not None:
            self._asked.append(asked)

    def reload(self) -> None:
        """Read the settings, and start a new generation with them."""
        self.wanted = False
        self._waiting, self._asked = self._asked, []
        self._notifier.reloading()
        self._read_at = time.time()
        try:
            self._read()
        except Exception:  # a bug in reading settings must not take along those who serve
            log.exception("settings.reload_crashed")
            if self.succession is not None:
                self.succession.fail("a bug")
            self._abandon("a bug: see the log")

    def _read(self) -> None:
        mistakes: list[str] = []
        try:
            settings = load(self.config)
            preflight(settings, self.config)
            self._succeed(settings)
        except SettingsError as exc:
            mistakes = [str(mistake) for mistake in exc.mistakes]
        except BindFailed as exc:
            mistakes = [str(exc)]
        if mistakes:
            if len(mistakes) > _MOST_MISTAKES:
                mistakes[_MOST_MISTAKES:] = [f"and {len(mistakes) - _MOST_MISTAKES} more"]
            log.warning("settings.rejected", config=str(self.config), mistakes=mistakes)
            self._end("rejected", "\n".join(mistakes))

    def _succeed(self, settings: Settings, *, listening: bool = False) -> None:
        """Start the heirs.

        Raises:
            BindFailed: An address cannot be listened on.
            SettingsError: A certificate cannot be used, though it looked well.
        """
        workers = cores() if settings.workers == "auto" else settings.workers
        users, tls = users_files(settings), admin_tls(settings, self.config)
        sockets = self.household.sockets
        sockets.reserve(settings, workers, listening=listening)
        try:
            doors = self._doors.open(settings)
        except BaseException:
            sockets.abandon()
            raise
        self.number += 1
        instance = blake2b(self.throttle_key, digest_size=8, person=b"porter instance").hexdigest()
        key = self._shared_key(settings) or self.throttle_key
        plan = Plan(settings, self.config, doors, self.number, workers, key, users, tls, instance)
        heirs = Generation(self.number, workers, settings.timeouts, settings.log, plan)
        files = LiveFiles(settings, self._read_at)
        self.succession = Succession(self.household, heirs, self.current, self._patience, self._clock)
        self.succession.on_ready = self._commit
        self.succession.on_begun = lambda: self._begun(files)
        settle_memory()
        self.succession.start()

    def _shared_key(self, settings: Settings) -> bytes | None:
        if settings.fleet is None:
            return None
        from proxy.app.fleet_hands import shared_key  # sources.import_rooms says why here

        return shared_key(settings)

    # --- going on ---

    def heard(self, child: Child, kind: str) -> None:
        """A child has said something."""
        if self.succession is not None:
            self.succession.heard(child, kind)

    def died(self, child: Child, how: str) -> None:
        """A child has died; it still has its slot."""
        if self.succession is not None:
            self.succession.died(child, how)

    def tick(self, now: float) -> None:
        """See what has become of the change that is under way."""
        if self.succession is None:
            return
        self.succession.tick(now)
        if self.succession.stage is Stage.FAILED:
            self._abandon(self.succession.failure)
        elif self.succession.stage is Stage.DONE:
            self.succession = None
            self.on_serving()

    def cancel(self) -> None:
        """The end has come: who is to begin yet, never does; what cannot be taken back is carried out."""
        if self.succession is None:
            return
        if self.succession.stage in (Stage.PREPARING, Stage.FAILED):
            self.succession.fail("the proxy stops")
            self._abandon("the proxy stops")
        else:
            self.succession.tick(float("inf"))
            self.succession = None

    def heirs(self) -> list[Child]:
        """Who has not begun yet."""
        if self.succession is None or self.succession.heirs is self.current:
            return []
        return list(self.succession.heirs.children())

    def generations(self) -> list[Generation]:
        """The current one, and the one that is to follow."""
        heirs = None if self.succession is None else self.succession.heirs
        return [each for each in dict.fromkeys((self.current, heirs)) if each is not None]

    # --- ending ---

    def _commit(self) -> None:
        """All are ready. From here on nothing is taken back, and the steward who was asked will soon be gone.

        Raises:
            BindFailed: An address has been taken meanwhile.
        """
        self.household.sockets.listen()
        assert self.succession is not None
        plan = self.succession.heirs.plan
        assert plan is not None
        before = None if self.current is None or self.current.plan is None else self.current.plan.settings
        changed = [] if before is None else changed_keys(before, plan.settings)
        if self.current is not None:
            set_level(plan.settings.log.level)  # what an administrator said of it is over
            log.info("settings.reloaded", generation=plan.generation, workers=plan.workers, changed=changed)
            self._end("ok", f"generation {plan.generation}; changed: {', '.join(changed) or 'nothing'}")

    def _begun(self, files: LiveFiles) -> None:
        assert self.succession is not None
        before, self.current = self.current, self.succession.heirs
        assert self.current.plan is not None
        settings = self.current.plan.settings
        self.household.sockets.settle(settings)
        self._doors.settle()
        self.files = files
        if before is not None and before.log != settings.log:
            configure(settings.log.format, settings.log.level, threaded=False)
        _LAST_RELOAD.set(self._read_at)

    def _abandon(self, why: str) -> None:
        self.succession = None
        self.household.sockets.abandon()
        self._doors.abandon()
        if self.current is None:
            log.error("master.start_failed", reason=why)
        else:
            log.warning("settings.reload_failed", generation=self.number, reason=why)
            self._end("failed", why)

    def _end(self, result: Result, text: str) -> None:
        _RELOADS.labels(result).inc()
        text = text[:_MOST_TEXT]
        self.last = {"at": self._read_at, "result": result, "text": text}
        for asked in self._waiting:
            if asked.child.pid in self.household.children:
                asked.child.post(["answer", asked.question, result == "ok", text])
        self._waiting.clear()
        if result != "ok":
            self._notifier.ready(f"the settings were not reloaded: {text.splitlines()[0]}")
