"""Ctrl-C and SIGTERM become one exception, so that unfinished files are removed on the way out."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

REPEAT = 1.0  # seconds; a second signal this soon must not interrupt the cleaning up


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end."""


@dataclass
class Stop:
    """Which signal came, if any."""

    signum: int = 0
    time: float = 0.0  # seconds, monotonic

    @property
    def name(self) -> str:
        """The signal's name, such as SIGTERM."""
        return signal.Signals(self.signum).name


@contextlib.contextmanager
def stoppable() -> Iterator[Stop]:
    """Raise ``Stopped`` on SIGINT and SIGTERM, and put the old handlers back at the end."""
    stop = Stop()

    def on_signal(signum: int, frame: FrameType | None) -> None:
        repeated = stop.signum and time.monotonic() - stop.time < REPEAT
        stop.signum, stop.time = stop.signum or signum, time.monotonic()
        if not repeated:
            raise Stopped(signal.Signals(signum).name)

    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may set handlers
        return
    before = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
