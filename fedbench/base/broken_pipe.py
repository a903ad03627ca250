"""A reader who has seen enough (`... | head`) ends a command without a word."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

CLOSED = 141  # what a shell says of a program that SIGPIPE ended
P = ParamSpec("P")


def exits_when_pipe_closes(main: Callable[P, int]) -> Callable[P, int]:
    """A command's `main` that gives back 141 where nobody reads its output any more; runs that it has started go on."""

    @wraps(main)
    def quiet(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            code = main(*args, **kwargs)
            sys.stdout.flush()  # here, and not when the interpreter ends and can only complain
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return CLOSED
        return code

    return quiet
