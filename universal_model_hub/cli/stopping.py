"""Ctrl-C and SIGTERM become one exception, so that unfinished files are removed on the way out."""

import _thread
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

REPEAT = 1.0  # seconds; a second signal this soon must not interrupt the cleaning up
AGAIN = 0.05  # seconds after which an exception that Python ignored is raised again


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
    """Raise ``Stopped`` on SIGINT and SIGTERM, and put the old handlers back at the end.

    Python ignores what is raised in a finalizer or a callback of a weak reference. A signal that
    came just then is raised again a moment later, so that it is not lost.
    """
    stop = Stop()
    retries: list[threading.Timer] = []
    report_unraisable = sys.unraisablehook

    def on_signal(signum: int, frame: FrameType | None) -> None:
        repeated = stop.signum and time.monotonic() - stop.time < REPEAT
        stop.signum, stop.time = stop.signum or signum, time.monotonic()
        if not repeated:
            raise Stopped(signal.Signals(signum).name)

    def on_unraisable(args: "sys.UnraisableHookArgs") -> None:
        if not isinstance(args.exc_value, Stopped):
            report_unraisable(args)
            return
        stop.time -= REPEAT  # the next one counts as the first
        retries.append(threading.Timer(AGAIN, _thread.interrupt_main, [stop.signum]))
        retries[-1].daemon = True
        retries[-1].start()

    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may set handlers
        return
    before = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    sys.unraisablehook = on_unraisable
    try:
        yield stop
    finally:
        sys.unraisablehook = report_unraisable
        for retry in retries:
            retry.cancel()
        for signum, handler in before.items():
            signal.signal(signum, handler)
