"""Makes matplotlib's work with fonts faster, by parts of it that are private: in other versions it is only slower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from fontTools import subset  # type: ignore[import-untyped]  # matplotlib makes the fonts of a PDF with it
from matplotlib import font_manager

FONT_LAYOUT = ("GSUB", "GPOS", "GDEF", "BASE", "MATH", "kern")  # tables of a font


@contextmanager
def fonts_without_layout() -> Iterator[None]:
    """Leave kerning, ligatures and the like out of the fonts that a PDF embeds.

    A PDF places glyphs by number and never reads these tables, but cutting them down takes an eighth of a report's time.
    """
    before = getattr(subset.Options, "_drop_tables_default", None)
    if before is None:
        yield
        return
    conversion = getattr(subset, "_compact_layout_tables", None)  # reads the tables that are dropped afterwards
    subset.Options._drop_tables_default = [*before, *FONT_LAYOUT]
    if conversion is not None:
        subset._compact_layout_tables = lambda font, **_: nullcontext()
    try:
        yield
    finally:
        subset.Options._drop_tables_default = before
        if conversion is not None:
            subset._compact_layout_tables = conversion


@contextmanager
def fonts_looked_up_once() -> Iterator[None]:
    """Look up the files of a font once. Without this, every text is looked up each time that it is measured.

    The font settings of matplotlib must not change inside.
    """
    manager: Any = font_manager.fontManager
    if not hasattr(type(manager), "_find_fonts_by_props"):
        yield
        return
    look_up = manager._find_fonts_by_props
    known: dict[tuple[int, Any], Any] = {}  # by the hash of the properties, which are mutable

    def remembered(properties: Any, *arguments: Any, **options: Any) -> Any:
        key = hash(properties), (*arguments, *sorted(options.items()))
        if key not in known:
            known[key] = look_up(properties, *arguments, **options)
        return known[key]

    manager._find_fonts_by_props = remembered
    try:
        yield
    finally:
        del manager._find_fonts_by_props
