"""Which parameters each local phase trains."""

from __future__ import annotations

from collections.abc import Mapping

from fedbench.method.hooks import HookError, describe
from fedbench.method.method import Method
from fedbench.method.param import Param


def trained_in(method: Method, spec: Mapping[str, Param], finetuning: bool = False) -> list[list[str]]:
    """The names that each local phase trains, one list for each phase; [] for a method that trains nothing.

    Raises HookError if a phase names no parameter, or if no phase trains a parameter that is declared as trained.
    """
    finetuned = method.finetune_phases if finetuning else None
    names = [n for n, p in spec.items() if p.trains or (finetuned and p.home in ("shared", "local"))]
    phases = finetuned or method.phases
    if phases is None:
        return [names] if names else []
    trained = [[n for n in names if any(n == part or n.startswith(part + ".") for part in phase)] for phase in phases]
    idle = [n for n in names if not finetuned and not any(n in phase for phase in trained)]
    if idle or [] in trained:
        raise HookError(
            f"{describe(method.params).partition(':')[0]}: phases are {phases}, but params() declares the trained values "
            f"{names}; " + (f"no phase trains {idle}" if idle else "a phase trains none of them")
        )
    return trained
