"""The class texts of a run: those that training sees, and those that an evaluation sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fedbench.base import process_cache
from fedbench.data import DataError
from fedbench.method import Method
from fedbench.method.fitting import check_novel, check_text
from fedbench.plan.config import RunConfig
from fedbench.plan.split import novel_classes
from fedbench.vit import two_towers

if TYPE_CHECKING:
    from fedbench.text.class_texts import ClassTexts


def texts_of(
    run: RunConfig, names: tuple[str, ...], method: Method, key: str, device: torch.device, dtype: torch.dtype
) -> tuple[ClassTexts, ClassTexts] | None:
    """The class `names` in the text tower, for evaluation and for training, which does not see novel classes.

    None if the method does not read text. `key` is that of the backbone in this process's cache. Raises ValueError if the
    backbone lacks the text tower that the method needs, or if the method has no answer for novel classes, and DataError if
    classes have no names.
    """
    check_text(method, two_towers.is_two_towers(run.backbone.name))
    check_novel(method, run.clients.novel)
    if not method.reads_text:
        return None
    if not names:
        raise DataError(f"dataset {run.dataset['name']} has no class names, which {run.method['name']} reads")
    from fedbench.text import class_texts

    block, cached = run.backbone, process_cache.cached
    side = cached("text", key, lambda: class_texts.text_side(block.name, block.weights, block.template, device, dtype))
    whole: ClassTexts = cached("class texts", (key, names), lambda: class_texts.ClassTexts.of(side, names))
    count = len(names) - novel_classes(run, len(names))
    if count == len(names):
        return whole, whole
    trained: ClassTexts = cached("trained class texts", (key, names, count), lambda: whole.first(count))
    return whole, trained
