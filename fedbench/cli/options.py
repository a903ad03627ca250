"""Command-line options that several verbs have, with one meaning everywhere."""

from __future__ import annotations

import argparse

OWN_PLUGINS = "folders of your own plug-ins, e.g. --plugins mine/"
AS_OF_THE_SWEEP = "the same settings as for the sweep"


def add_plugins(options: argparse.ArgumentParser) -> None:
    """Add `--plugins DIR [DIR ...]`, which may be repeated."""
    options.add_argument("--plugins", nargs="+", action="extend", default=[], metavar="DIR", help=OWN_PLUGINS)


def add_settings(options: argparse.ArgumentParser, meaning: str = AS_OF_THE_SWEEP) -> None:
    """Add `--set KEY=VALUE`, which may be repeated; the result is the list `settings`."""
    options.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings", help=meaning)
