"""Active checks: every backend tried in turn, each at its own time."""

from __future__ import annotations

import random
from collections.abc import Callable

import trio

from proxy.backends import last_failure
from proxy.backends.backend import Backend
from proxy.backends.pool import Pool
from proxy.observe import metrics
from proxy.observe.log import get_logger
from proxy.outcome import Refused
from proxy.settings.discovery_models import Health

log = get_logger()

_PAUSE_SECONDS = 1.0  # between two checks of a backend that does not work
_JITTER = 0.2
_RESULTS = ("ok", "failed")

_CHECKS = metrics.counter(
    "porter_backend_checks_total", "Active checks of the backend, by how they ended.", backend=None, result=_RESULTS
)
_DURATION = metrics.histogram(
    "porter_backend_check_duration_seconds",
    "How long active checks of backends took, failed ones included.",
    (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
_NOT_AFTER = metrics.gauge(
    "porter_backend_certificate_not_after_timestamp_seconds",
    "When the certificate ends that the backend showed to its last check, Unix time.",
    merge="min",
    backend=None,
)


class _NotTried(Exception):
    """A check that could not be made."""


class Monitor:
    """Checks the backends of a pool, whichever there are, and those that users are kept away from too."""

    def __init__(self, pool: Pool, health: Health, report: Callable[[str, str], None]) -> None:
        """Args:
        report: Is told the backend's name and what is wrong with it after each check; "": nothing is.
        """
        self._pool = pool
        self._health = health
        self._report = report

    async def run(self) -> None:
        """Go on for ever."""
        watched: dict[Backend, trio.CancelScope] = {}
        async with trio.open_nursery() as nursery:
            while True:
                now = set(self._pool)
                for backend in watched.keys() - now:
                    watched.pop(backend).cancel()
                for backend in now - watched.keys():
                    watched[backend] = trio.CancelScope()
                    nursery.start_soon(self._watch, backend, watched[backend])
                await self._pool.changed()

    async def _watch(self, backend: Backend, scope: trio.CancelScope) -> None:
        for result in _RESULTS:
            _CHECKS.labels(backend.name, result)  # so that zero is visible
        interval = self._health.interval
        with scope:
            # The first one soon, and not with all the others.
            due = trio.current_time() + interval * random.random()  # noqa: S311 - jitter
            while True:
                await trio.sleep_until(due)
                began = trio.current_time()
                works = await self._check(backend)
                # One that does not work is tried more often: its users wait for it.
                pause = interval if works else min(interval, _PAUSE_SECONDS)
                due = began + pause * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - jitter
        # Here, where no check is under way that would bring them back.
        if all(other.name != backend.name for other in self._pool):
            for result in _RESULTS:
                _CHECKS.remove(backend.name, result)
            _NOT_AFTER.remove(backend.name)

    async def _check(self, backend: Backend) -> bool:
        """Whether it works, so far as could be told."""
        began = trio.current_time()
        try:
            problem = await self._problem(backend)
            _DURATION.observe(trio.current_time() - began)
            _CHECKS.labels(backend.name, "failed" if problem else "ok").inc()
            self._report(backend.name, problem)
            return not problem
        except _NotTried as exc:
            log.warning("backend.check_not_tried", backend=backend.name, reason=str(exc))
        except Exception:
            # A mistake of ours says nothing about the backend, and must not end the checks of the others.
            log.exception("backend.check_broke", backend=backend.name)
        return True

    async def _problem(self, backend: Backend) -> str:
        """What is wrong with it; "": nothing.

        Raises:
            _NotTried: We were short of something, which says nothing about the backend.
        """
        check = backend.check(self._health.login)
        with trio.move_on_after(self._health.timeout):
            try:
                told = await check.run()
            except Refused as refusal:
                if refusal.step == "local":
                    raise _NotTried(refusal.detail) from None
                whose = "the probe's (health.login): " if refusal.step == "login" and self._health.login else ""
                last_failure.failed(backend.name, refusal.step)
                return f"{refusal.step}: {whose}{refusal.detail}"
            if told.certificate is not None and told.certificate.not_after is not None:
                _NOT_AFTER.labels(backend.name).set(told.certificate.not_after.timestamp())
            return ""
        last_failure.failed(backend.name, check.step)
        return f"{check.step}: no answer within {self._health.timeout:g} s"
