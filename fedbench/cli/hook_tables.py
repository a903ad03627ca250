"""The tables of docs/hooks.md: every hook, as its stub declares it, with shipped plug-ins that override it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

from fedbench.cli.markdown import prose, table
from fedbench.method import Aggregation, Method
from fedbench.method.hooks import hooks_of, is_optional
from fedbench.plan.plugins import Kind, Plugins

BASES: dict[Kind, type] = {"method": Method, "aggregation": Aggregation}
PAGES: dict[Kind, str] = {"method": "methods.md", "aggregation": "aggregations.md"}
EXAMPLES = 3  # most shipped plug-ins that are named for a hook


def hook_tables(plugins: Plugins) -> str:
    """A table of the hooks of a method, and one of the hooks of an aggregation."""
    header = ("hook", "what it sees", "what it returns", "when it is called", "for example")
    parts = []
    for kind, base in BASES.items():
        rows = [_row(kind, base, name, signature, plugins) for name, signature in hooks_of(base).items()]
        parts.append(f"## Hooks of {'a method' if kind == 'method' else 'an aggregation'}\n\n{table(header, rows)}\n")
    return "\n".join(parts)


def _row(kind: Kind, base: type, name: str, signature: inspect.Signature, plugins: Plugins) -> tuple[str, ...]:
    returns, called = described(base, name)
    sees = ", ".join(f"`{parameter}`" for parameter in signature.parameters)
    users = users_of(kind, name, plugins)[:EXAMPLES]
    links = ", ".join(f"[`{user}`]({PAGES[kind]}#{user})" for user in users)
    optional = " (optional)" if is_optional(base, name) else ""
    return f"`{name}`{optional}", sees or "nothing", prose(returns), prose(called), links


def described(base: type, name: str) -> tuple[str, str]:
    """From the docstring of a hook's stub: what the hook returns, and when it is called (the sentence "Called ...")."""
    text = " ".join((inspect.getdoc(inspect.getattr_static(base, name)) or "").split())
    returns, called, when = text.partition("Called ")
    when, _, rest = when.partition(". ")
    return f"{returns}{rest}".strip(), re.sub(r"\.?$", "", when) if called else ""


def users_of(kind: Kind, name: str, plugins: Plugins) -> list[str]:
    """The shipped plug-ins of a kind that override the hook `name`; those that do so in their own file come first."""
    classes = plugins.classes[kind]
    overriding = [plugin for plugin, cls in classes.items() if name in vars(cls)]
    return overriding + [plugin for plugin in _inheriting(name, BASES[kind], classes) if plugin not in overriding]


def _inheriting(name: str, base: type, classes: dict[str, type]) -> Iterator[str]:
    for plugin, cls in classes.items():
        parents = cls.__mro__[1 : cls.__mro__.index(base)]
        if any(name in vars(parent) for parent in parents):
            yield plugin
