"""Whether a signal has asked this process to stop at the next round boundary."""

from __future__ import annotations

from typing import Any


class StopRequest:
    """A flag that signal handlers set.

    It is not a threading.Event, since two signals that set an event at the same time would wait for each other for ever.
    """

    received = False

    def receive(self, *_: Any) -> None:
        """A signal handler."""
        self.received = True


stop_request = StopRequest()
