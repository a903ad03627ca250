"""What a plug-in's class must look like, before anything is run: its fields, the names and signatures of its hooks."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedbench.contract import ContractError, check
from fedbench.data import Dataset, Partitioner, SplitSource
from fedbench.method import Aggregation, Method
from fedbench.method.hooks import hooks_of

BASES: tuple[type, ...] = (Method, Aggregation, Dataset, Partitioner, SplitSource)
# The arguments of each hook, as its stub declares them.
HOOKS: dict[type, dict[str, tuple[str, ...]]] = {
    base: {name: tuple(signature.parameters) for name, signature in hooks_of(base).items()} for base in BASES
}
FAMILIES = ("global", "personalised", "grouped", "training-free", "reference")
DEPTH = 4  # of the miniature backbone


def base_of(plugin: Any) -> type:
    """Method, Aggregation, Dataset, Partitioner or SplitSource: of which the object `plugin` is one."""
    return next(base for base in BASES if isinstance(plugin, base))


@check("plugin")
def fields_are_options(plugin: Any) -> None:
    """The class is a frozen dataclass, and each field has a meaning."""
    cls, base = type(plugin), base_of(plugin)
    if "__dataclass_params__" not in vars(cls):
        raise ContractError(f"class {cls.__name__}", "@dataclass(frozen=True) above it", "no decorator")
    own = {field.name for field in dataclasses.fields(base)}
    for field in dataclasses.fields(cls):
        if field.name not in own and hasattr(base, field.name):
            raise ContractError(
                f"field {field.name!r}",
                f"no field of this name, since {base.__name__} has a fact or hook called so: leave its annotation out, or "
                "say ClassVar[...]",
                f"{field.name}: {field.type}",
            )
        if not field.metadata.get("meaning"):
            raise ContractError(f"field {field.name!r}", "option(default, 'its meaning')", "no meaning")
    if isinstance(plugin, Method) and plugin.family not in FAMILIES:
        raise ContractError("family", f"one of {', '.join(FAMILIES)}", repr(plugin.family))
    if not plugin.citation:
        raise ContractError("citation", "where it comes from ('ours' will do)", "nothing")


@check("plugin")
def hooks_have_the_right_arguments(plugin: Any) -> None:
    """Each hook takes the arguments that the core gives it, by position."""
    for name, arguments in HOOKS[base_of(plugin)].items():
        hook = getattr(plugin, name)
        told = f"{name}({', '.join(arguments)})"
        if hook is None:
            continue
        if not callable(hook):
            raise ContractError(f"{name}()", f"a method {told}", f"{name} = {hook!r}")
        signature = inspect.signature(hook)
        try:
            signature.bind(*arguments)
        except TypeError as error:
            raise ContractError(f"{name}()", told, f"{name}{signature} ({error})") from error
    for name in ("uses_query", "uses_prior") if isinstance(plugin, Method) else ():
        if not isinstance(value := getattr(plugin, name), bool):
            raise ContractError(name, "True, False or a @property that says which", f"{value!r}")


@check("plugin")
def hooks_are_complete(plugin: Any) -> None:
    """Hooks that need each other are there together."""
    base = base_of(plugin)

    def own(name: str) -> bool:
        return getattr(type(plugin), name) is not getattr(base, name) and getattr(plugin, name) is not None

    def need(hook: str, why: str) -> None:
        raise ContractError(f"{hook}()", f"a hook {hook}({', '.join(HOOKS[base][hook])}), {why}", "none")

    if isinstance(plugin, Method):
        if not own("prompts") and any(one.layers(DEPTH) for one in _moments(plugin)):
            need("prompts", f"since layers({DEPTH}) names blocks that prompts enter")
        if own("prompts") and not any(one.layers(DEPTH) for one in _moments(plugin)):
            need("layers", "that names blocks: without one, prompts() is never called")
        if own("statistics") and not own("absorb"):
            need("absorb", "by which the server takes in what statistics() gives")
        # With only_if, statistics may be absent for some fields, so the class is asked and not the object.
        if own("absorb") and not declares(plugin, "statistics"):
            need("statistics", "that makes what absorb() takes in")
        if plugin.taps(DEPTH) and not own("observe"):
            need("observe", "the only one that sees taps()")
        if plugin.views and not own("extra_loss"):
            need("extra_loss", "the only one that reads the views")
    elif isinstance(plugin, Dataset) and not own("load"):
        need("load", "that reads the samples")
    elif isinstance(plugin, Partitioner) and not (own("shares") or own("assign") or own("deal")):
        need("shares", "or assign()")
    elif base is SplitSource and not own("deal"):
        need("deal", "that says whose each sample is")


def declares(plugin: Any, name: str) -> bool:
    """Whether the class of `plugin` has a hook `name` of its own, even if some of its objects lack it."""
    return getattr(type(plugin), name) is not getattr(base_of(plugin), name)


def _moments(method: Method) -> Iterator[Method]:
    """The method as it is in evaluation, and in each phase and view."""
    yield method
    for phase in range(len(method.phases or ())):
        for view in (None, *method.views):
            yield method.at(phase, view)
    for view in method.views:
        yield method.at(None, view)


@check("plugin", warns=True)
def public_names_are_hooks(plugin: Any) -> None:
    """Each public name of the class is one of the contract, or is used in the file."""
    cls, base = type(plugin), base_of(plugin)
    tree = ast.parse(Path(inspect.getfile(cls)).read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    fields = {field.name for field in dataclasses.fields(cls)}
    own = [one for one in cls.__mro__ if one.__module__ == cls.__module__]
    known = {
        name for one in cls.__mro__ if one not in own for name in [*vars(one), *getattr(one, "__annotations__", {})]
    }
    for owner in own:
        for name in vars(owner):
            if name.startswith("_") or name in known | fields | used:
                continue
            near = difflib.get_close_matches(name, [n for n in dir(base) if not n.startswith("_")], n=1, cutoff=0.5)
            raise ContractError(
                name, f"a hook{f' (did you mean {near[0]!r}?)' if near else ''}", "a name that nothing calls or reads"
            )


CHECKS = (fields_are_options, hooks_have_the_right_arguments, hooks_are_complete, public_names_are_hooks)
