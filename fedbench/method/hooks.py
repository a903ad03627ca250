"""The declaration of hooks, under the name by which methods and their runs import it; see `fedbench.base.hooks`."""

from fedbench.base.hooks import HookError, describe, hook, hooks_of, is_optional, only_if, optional_hook

__all__ = ["HookError", "describe", "hook", "hooks_of", "is_optional", "only_if", "optional_hook"]
