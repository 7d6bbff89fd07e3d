"""Where users were last, for a while after their last session."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple


class Pin(NamedTuple):
    """Where a user was."""

    backend: str
    left_at: float
    sticky: bool  # whether he may go back there; False: it only tells how long he has been away


class Pins:
    """A bounded memory. Only who was let in by a backend gets here, so no stranger can fill it."""

    def __init__(self, seconds: float, most: int) -> None:
        """Args:
        seconds: How long a pin is of use.
        most: How many there may be; the oldest go first.
        """
        self._seconds, self._most = seconds, most
        self._pins: OrderedDict[str, Pin] = OrderedDict()  # nearly in the order of left_at
        self.dropped = 0  # for want of room

    def put(self, name: str, pin: Pin) -> None:
        """He has just left."""
        if not self._seconds:
            return
        self._pins[name] = pin
        self._pins.move_to_end(name)
        if len(self._pins) > self._most:
            self._pins.popitem(last=False)
            self.dropped += 1

    def get(self, name: str, now: float) -> Pin | None:
        """Where he was, as long as that is of use."""
        pin = self._pins.get(name)
        return pin if pin is not None and pin.left_at + self._seconds > now else None

    def loosen(self, name: str) -> None:
        """He need not go back there."""
        pin = self._pins.get(name)
        if pin is not None:
            self._pins[name] = pin._replace(sticky=False)

    def memory(self, now: float) -> list[list[Any]]:
        """Those that are of use, oldest first, for another's recall(); JSON."""
        return [
            [name, pin.backend, round(now - pin.left_at, 3), pin.sticky]
            for name, pin in self._pins.items()
            if pin.left_at + self._seconds > now
        ]

    def recall(self, memory: object, now: float) -> None:
        """Take over another's. What makes no sense is passed over; of two pins the newer counts."""
        for entry in memory if isinstance(memory, list) else ():
            match entry:
                case [str(name), str(backend), int() | float() as age, bool(sticky), *_] if age >= 0:
                    known = self._pins.get(name)
                    if known is None or known.left_at < now - age:
                        self.put(name, Pin(backend, now - age, sticky))

    def names(self, now: float) -> list[str]:
        """Whose are of use."""
        return [name for name, pin in self._pins.items() if pin.left_at + self._seconds > now]

    def drop(self, name: str) -> None:
        self._pins.pop(name, None)

    def expire(self, now: float) -> None:
        """Forget what is of no use any more."""
        while self._pins:
            name, pin = next(iter(self._pins.items()))
            if pin.left_at + self._seconds > now:
                break
            del self._pins[name]

    def __len__(self) -> int:
        return len(self._pins)
