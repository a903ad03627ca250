"""Static checks of a plug-in's class: its fields, and the names and signatures of its hooks. Nothing is run."""

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
from fedbench.method import Aggregation, Method, Metric
from fedbench.method.hooks import hooks_of

BASES: tuple[type, ...] = (Method, Aggregation, Metric, Dataset, Partitioner, SplitSource)
# The arguments of each hook, as its stub declares them.
HOOKS: dict[type, dict[str, tuple[str, ...]]] = {
    base: {name: tuple(signature.parameters) for name, signature in hooks_of(base).items()} for base in BASES
}
FAMILIES = ("global", "personalised", "grouped", "training-free", "reference")
DEPTH = 4  # blocks of the miniature backbone


def base_of(plugin: Any) -> type:
    """The base class of the object `plugin`: Method, Aggregation, Metric, Dataset, Partitioner or SplitSource."""
    return next(base for base in BASES if isinstance(plugin, base))


@check("plugin")
def fields_are_options(plugin: Any) -> None:
    """The class is a frozen dataclass, and each field has a meaning."""
    cls, base = type(plugin), base_of(plugin)
    if "__dataclass_params__" not in vars(cls):
        raise ContractError(f"class {cls.__name__}", "@dataclass(frozen=True) above it", "no decorator")
    base_fields = {field.name for field in dataclasses.fields(base)}
    for field in dataclasses.fields(cls):
        if field.name not in base_fields and hasattr(base, field.name):
            raise ContractError(
                f"field {field.name!r}",
                f"no field of this name, since {base.__name__} has a hook or class attribute of this name: remove the "
                "annotation, or write ClassVar[...]",
                f"{field.name}: {field.type}",
            )
        if not field.metadata.get("meaning"):
            raise ContractError(f"field {field.name!r}", "option(default, 'its meaning')", "no meaning")
    if isinstance(plugin, Method) and plugin.family not in FAMILIES:
        raise ContractError("family", f"one of {', '.join(FAMILIES)}", repr(plugin.family))
    if not plugin.citation:
        raise ContractError("citation", "the publication it comes from, or 'ours'", "an empty string")


@check("plugin")
def hooks_have_the_right_arguments(plugin: Any) -> None:
    """Each hook takes the arguments that the core passes, by position."""
    for name, arguments in HOOKS[base_of(plugin)].items():
        hook = _hook(plugin, name)
        expected = f"{name}({', '.join(arguments)})"
        if hook is None:
            continue
        if not callable(hook):
            raise ContractError(f"{name}()", f"a method {expected}", f"{name} = {hook!r}")
        signature = inspect.signature(hook)
        try:
            signature.bind(*arguments)
        except TypeError as error:
            raise ContractError(f"{name}()", expected, f"{name}{signature} ({error})") from error
    flags = {Method: ("uses_query", "uses_prior", "uses_round"), Aggregation: ("uses_round",)}
    for name in flags.get(base_of(plugin), ()):
        if not isinstance(value := getattr(plugin, name), bool):
            raise ContractError(name, "True, False, or a @property that returns one of them", f"{value!r}")


@check("plugin")
def hooks_are_complete(plugin: Any) -> None:
    """Hooks that need each other are defined together."""
    base = base_of(plugin)

    def defines(name: str) -> bool:
        return declares(plugin, name) and _hook(plugin, name) is not None

    def need(hook: str, why: str) -> None:
        raise ContractError(f"{hook}()", f"a hook {hook}({', '.join(HOOKS[base][hook])}), {why}", "none")

    if isinstance(plugin, Method):
        entering = [name for name in ("prompts", "prefixes") if defines(name)]
        has_layers = any(method.layers(DEPTH) for method in _phases_and_views(plugin))
        if has_layers and not entering:
            need("prompts", f"since layers({DEPTH}) names blocks that prompts enter")
        if entering and not has_layers:
            need("layers", f"that names the blocks where {entering[0]}() is called")
        if defines("statistics") and not defines("absorb"):
            need("absorb", "by which the server uses what statistics() returns")
        # With only_if, an object may lack statistics although its class defines it.
        if defines("absorb") and not declares(plugin, "statistics"):
            need("statistics", "whose results absorb() reads")
        if plugin.taps(DEPTH) and not defines("observe"):
            need("observe", "the only hook that reads the taps")
        if plugin.candidates and not defines("choose_by_loss"):
            need("choose_by_loss", "the only hook that reads the losses of the candidates")
        if plugin.views and not defines("extra_loss"):
            need("extra_loss", "the only hook that reads the views")
    elif isinstance(plugin, Dataset) and not defines("load"):
        need("load", "that reads the samples")
    elif isinstance(plugin, Partitioner) and not (defines("shares") or defines("assign") or defines("deal")):
        need("shares", "or assign()")
    elif base is SplitSource and not defines("deal"):
        need("deal", "that assigns each sample to a client")


def declares(plugin: Any, name: str) -> bool:
    """Whether the class of `plugin` overrides the hook `name`, even if some objects of the class lack it (`only_if`)."""
    return getattr(type(plugin), name) is not getattr(base_of(plugin), name)


def _hook(plugin: Any, name: str) -> Any:
    """The object's hook in evaluation, or in the first phase or view that has it (`only_if`); None if it is nowhere."""
    objects = _phases_and_views(plugin) if isinstance(plugin, Method) else [plugin]
    return next((hook for part in objects if (hook := getattr(part, name)) is not None), None)


def _phases_and_views(method: Method) -> Iterator[Method]:
    """The method in evaluation, and in each phase and view."""
    yield method
    for phase in range(len(method.phases or ())):
        for view in (None, *method.views):
            yield method.at(phase, view)
    for view in (*method.views, *method.candidates):
        yield method.at(None, view)


@check("plugin", warns=True)
def public_names_are_hooks(plugin: Any) -> None:
    """Each public name of the class belongs to the contract or is used in the file."""
    cls, base = type(plugin), base_of(plugin)
    tree = ast.parse(Path(inspect.getfile(cls)).read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    fields = {field.name for field in dataclasses.fields(cls)}
    in_file = [part for part in cls.__mro__ if part.__module__ == cls.__module__]
    inherited = {
        name
        for part in cls.__mro__
        if part not in in_file
        for name in [*vars(part), *getattr(part, "__annotations__", {})]
    }
    for owner in in_file:
        for name in vars(owner):
            if name.startswith("_") or name in inherited | fields | used:
                continue
            near = difflib.get_close_matches(name, [n for n in dir(base) if not n.startswith("_")], n=1, cutoff=0.5)
            raise ContractError(
                name, f"a hook{f' (did you mean {near[0]!r}?)' if near else ''}", "a name that nothing uses"
            )


CHECKS = (fields_are_options, hooks_have_the_right_arguments, hooks_are_complete, public_names_are_hooks)
