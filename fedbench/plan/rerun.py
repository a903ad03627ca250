"""From the identity of a run back to a run that can be done here, for runs that others published."""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedbench.base.naming import flat
from fedbench.plan.checker import Checker
from fedbench.plan.config import ConfigError, PlannedRun
from fedbench.plan.expansion import set_path
from fedbench.plan.plugins import PLUGIN_KINDS, PluginError, Plugins

CONTENT_HASH = re.compile("[0-9a-f]{16}")  # stands for a file or folder in an identity, see `plan.content`


class NotHere(ConfigError):
    """A run cannot be done here, since a plug-in or a file that it needs is missing or has changed."""


def planned_from_identity(
    identity: Mapping[str, Any], label: str, plugins: Plugins, data: Path, files: Sequence[Path] = ()
) -> PlannedRun:
    """The run of an identity, with the plug-ins and data that are here.

    files: the user's own files and folders that runs may read; each is put where the identity holds the hash of its
    content. Raises NotHere if no run with exactly this identity can be made.
    """
    for kind in PLUGIN_KINDS:
        name = (identity.get(kind) or {}).get("name") if isinstance(identity.get(kind), dict) else None
        if name not in plugins.classes[kind]:
            raise NotHere(f"there is no {kind} plug-in {str(name)[:60]!r} here")
    places = [path for path, value in flat(identity).items() if CONTENT_HASH.fullmatch(str(value))]
    reason = ""
    for chosen in itertools.product(files, repeat=len(places)):
        checker = Checker(plugins)
        checker.data = data
        content = copy.deepcopy(dict(identity))
        for path, file in zip(places, chosen, strict=True):
            set_path(content, path, str(file.resolve()), checker.mistakes)
        try:
            planned = checker.run(content, label=label)
            checker.mistakes.raise_if_any("its identity")
        except (ConfigError, PluginError) as error:
            reason = " ".join(str(error).split())
            continue
        if planned is not None and json.loads(json.dumps(planned.identity, default=str)) == identity:
            return planned
    if places:
        raise NotHere(f"no file with the content of {' and '.join(places)} is named by --files")
    raise NotHere(reason or "its plug-ins have other fields here than when it was published")
