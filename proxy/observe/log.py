"""Log events: the only door to structlog.

    log = get_logger()
    log.info("ldap.server_down", backend=name, step="greeting")

An event is constant text, `room.what_happened`; what varies are keys. One event is one line, always (`render`), and
no line waits for whoever reads it (`sink`). Before configure() lines go to standard error directly, for people.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, MutableMapping
from functools import partial
from types import MappingProxyType, TracebackType
from typing import Any, Literal, cast

from proxy.observe import metrics
from proxy.observe.render import ConsoleRenderer, JsonRenderer, Renderer, one_line_traceback
from proxy.observe.sink import DirectSink, LogSink, Sink

# structlog takes rich along where it finds it, for tracebacks that we never show: 4 MiB in each process.
_rich = sys.modules.setdefault("rich", cast(Any, None))
import structlog  # noqa: E402

if _rich is None:
    del sys.modules["rich"]

Format = Literal["json", "console"]
Level = Literal["debug", "info", "warning", "error"]
LEVELS: Mapping[str, int] = MappingProxyType(
    {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
)
_DEBUG, _INFO, _WARNING, _ERROR = LEVELS.values()

_dropped_total = metrics.counter(
    "porter_log_lines_dropped_total",
    "Log lines lost because the log's reader was too slow or gone.",
)


def _write_to_standard_error(line: bytes) -> None:
    try:
        os.write(2, line)
    except OSError:  # closed: nobody is left to tell
        return


class _Door:
    """What every logger writes through; configure() changes what lies behind it, loggers never change."""

    debug: Callable[[bytes], None]
    info: Callable[[bytes], None]
    warning: Callable[[bytes], None]
    error: Callable[[bytes], None]

    def __init__(self) -> None:
        self.threshold = _INFO
        self.sink: Sink | None = None
        self.lead_to(ConsoleRenderer(coloured=False), _write_to_standard_error)

    def lead_to(self, render: Renderer, put: Callable[[bytes], None]) -> None:
        self.render = render
        self.debug = self.info = self.warning = self.error = put


_door = _Door()


class Log(structlog.BoundLoggerBase):
    """A logger whose level is looked up at each call, so that it can change while the process runs."""

    def debug(self, event: str, **values: object) -> None:
        """Details for somebody who is looking for a fault."""
        if _door.threshold <= _DEBUG:
            self._write("debug", event, values)

    def info(self, event: str, **values: object) -> None:
        """Normal life, wrong passwords included."""
        if _door.threshold <= _INFO:
            self._write("info", event, values)

    def warning(self, event: str, **values: object) -> None:
        """Someone should look this week."""
        if _door.threshold <= _WARNING:
            self._write("warning", event, values)

    def error(self, event: str, **values: object) -> None:
        """A bug of ours."""
        self._write("error", event, values)

    def exception(self, event: str, **values: object) -> None:
        """A bug of ours, with the traceback of the exception being handled."""
        values.setdefault("exc_info", True)
        self._write("error", event, values)

    def _write(self, level: str, event: str, values: dict[str, Any]) -> None:
        # structlog's own _proxy_to_logger() copies the values four times, a third of a line's cost.
        line: Any = {**self._context, **values} if self._context else values
        line["event"] = event
        try:
            for process in self._processors:
                line = process(self._logger, level, line)
        except structlog.DropEvent:
            return
        getattr(self._logger, level)(line)


def _render(_logger: object, level: str, event_dict: MutableMapping[str, Any]) -> bytes:
    """The one structlog processor: event and values → a line. A value that cannot be shown never raises."""
    event = event_dict.pop("event", "")
    try:
        if (error := _exception_of(event_dict.pop("exc_info", None))) is not None:
            event_dict["traceback"] = one_line_traceback(error)
        return _door.render(level, event, event_dict)
    except Exception as failure:  # a __str__ that raises must not end the session that it tells of
        values = {"line": str(event), "error": type(failure).__name__}
        return _door.render("error", "log.line_failed", values)


def _exception_of(exc_info: object) -> BaseException | None:
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple):
        return cast(BaseException | None, exc_info[1])
    return sys.exc_info()[1] if exc_info else None


structlog.configure(
    processors=[_render],
    wrapper_class=Log,
    logger_factory=lambda: _door,
    cache_logger_on_first_use=True,
)


def get_logger() -> Log:
    """A logger; any number of them is the same."""
    # bind() skips structlog's lazy proxy, which costs on every call.
    return cast(Log, structlog.get_logger().bind())


def set_level(level: Level) -> None:
    """From now on write lines of this level and above; libraries speak up from warning, at debug from debug."""
    _door.threshold = LEVELS[level]
    logging.getLogger().setLevel(_DEBUG if level == "debug" else max(_WARNING, LEVELS[level]))


def configure(format: Format = "json", level: Level = "info", *, descriptor: int = 2, threaded: bool = True) -> Sink:
    """Send all lines to a file descriptor by way of a sink that never blocks; close the sink at exit.

    The standard library's logging and warnings and unhandled exceptions of any thread come along. Nothing
    is started before the first line, so this may be called before a fork.

    Args:
        threaded: False, for a process that goes on forking: lines are written without a thread, and flush() has to be
            called now and then for those that could not be written at once.
    """
    render: Renderer
    if format == "json":
        render = JsonRenderer()
    else:
        render = ConsoleRenderer(coloured=os.isatty(descriptor) and "NO_COLOR" not in os.environ)

    def lost_line(lines: int) -> bytes:
        return render("warning", "log.lines_dropped", {"lines": lines})

    sink: Sink = LogSink(descriptor, lost_line) if threaded else DirectSink(descriptor, lost_line)
    restore()
    _door.sink = sink
    _door.lead_to(render, sink.put)
    _route_others()
    set_level(level)
    atexit.register(sink.close)
    return sink


def flush() -> None:
    """Without a thread: write the lines that had to wait, as far as they need not wait on."""
    if isinstance(_door.sink, DirectSink):
        _door.sink.pump()


def restore() -> None:
    """Undo configure(): close its sink, write to standard error directly again, give Python its own hooks back."""
    sink, _door.sink = _door.sink, None
    if sink is None:
        return
    atexit.unregister(sink.close)
    _door.threshold = _INFO
    _door.lead_to(ConsoleRenderer(coloured=False), _write_to_standard_error)
    for undo in _undoing:
        undo()
    _undoing.clear()
    sink.close()


# --- what others have to say ---


class _Bridge(logging.Handler):
    """Lines of libraries and warnings, which come by the standard library's logging."""

    def emit(self, record: logging.LogRecord) -> None:
        level: Level = "debug"
        for name, number in LEVELS.items():
            if record.levelno >= number:
                level = cast(Level, name)
        try:
            message = record.getMessage()
        except Exception as exc:  # wrong arguments for the format
            message = f"{record.msg} ({type(exc).__name__})"
        event = "python.warned" if record.name == "py.warnings" else "python.logged"
        getattr(_log, level)(event, logger=record.name, message=message.rstrip("\n"), exc_info=record.exc_info)


def _route_others() -> None:
    root = logging.getLogger()
    root.addHandler(_bridge)
    logging.captureWarnings(True)
    _undoing.extend(
        [
            partial(root.removeHandler, _bridge),
            partial(root.setLevel, root.level),
            partial(logging.captureWarnings, False),
            partial(setattr, sys, "excepthook", sys.excepthook),
            partial(setattr, threading, "excepthook", threading.excepthook),
            partial(setattr, sys, "unraisablehook", sys.unraisablehook),
        ]
    )
    sys.excepthook = _process_crashed
    threading.excepthook = _thread_crashed
    sys.unraisablehook = _unraisable


def _process_crashed(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
    else:
        _log.error("process.crashed", exc_info=error)


def _thread_crashed(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        _log.error("thread.crashed", thread=args.thread.name if args.thread else None, exc_info=args.exc_value)


def _unraisable(args: sys.UnraisableHookArgs) -> None:
    _log.error("python.unraisable", where=type(args.object).__name__, note=args.err_msg, exc_info=args.exc_value)


def _flush_dropped() -> None:
    sink = _door.sink
    if sink is not None:
        _dropped_total.inc(sink.take_dropped())


def _after_fork() -> None:
    if _door.sink is not None:
        _door.sink.after_fork()


_log = get_logger()
_bridge = _Bridge()
_undoing: list[Callable[[], object]] = []
metrics.METRICS.on_flush(_flush_dropped)
os.register_at_fork(after_in_child=_after_fork)
