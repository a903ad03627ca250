"""Ends a command quietly when the reader of its output stops reading (`... | head`)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

EXIT_PIPE_CLOSED = 141  # the exit code that a shell reports for a program killed by SIGPIPE
P = ParamSpec("P")


def exits_when_pipe_closes(main: Callable[P, int]) -> Callable[P, int]:
    """Make a command's `main` return 141 once nobody reads its output. Runs that it has started continue."""

    @wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            code = main(*args, **kwargs)
            sys.stdout.flush()  # here, since the interpreter would only print an error at its end
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_PIPE_CLOSED
        return code

    return wrapped
