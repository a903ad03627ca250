"""Checks of a method before a run: its blocks exist, and its parameters fit its options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fedbench.method.aggregation import Aggregation
from fedbench.method.method import Method
from fedbench.method.param import Param


def moments(method: Method) -> Iterator[Method]:
    """The method in evaluation, and in each phase and view of training."""
    yield method
    for phase in (None, *range(len(method.phases or ()))):
        for view in (None, *method.views, *(method.candidates if phase is None else ())):
            if phase is not None or view is not None:
                yield method.at(phase, view)


def check_blocks(method: Method, depth: int) -> None:
    """Raise ValueError if the method names a block that a backbone of `depth` blocks lacks.

    `layers` and `taps` are checked in every phase and view.
    """
    for moment in moments(method):
        for hook, blocks in (("layers", moment.layers(depth)), ("taps", moment.taps(depth))):
            if outside := [block for block in blocks if not 0 <= block < depth]:
                raise ValueError(f"{hook}() names block {outside[0]}, but the backbone has the blocks 0..{depth - 1}")
    if method.query_after is not None and not 0 <= method.query_after < depth:
        raise ValueError(f"query_after is {method.query_after}, but the backbone has the blocks 0..{depth - 1}")


def check_prefixes(method: Method, takes_prefixes: bool) -> None:
    """Raise ValueError if the method has prefixes and the blocks of the backbone take none."""
    if not takes_prefixes and any(moment.prefixes is not None for moment in moments(method)):
        raise ValueError(
            "its prefixes join the keys and values of timm's plain attention, as in vit_base_patch16_224; the blocks of this "
            "backbone have another one"
        )


def check_text(method: Method, has_text: bool) -> None:
    """Raise ValueError if the method reads text and the backbone has no text tower."""
    if method.reads_text and not has_text:
        raise ValueError(
            "it needs a backbone with a text tower: clip_nano, two_towers with `weights:`, or an open_clip model such as "
            "open_clip/ViT-B-16.openai"
        )


def check_novel(method: Method, novel: float) -> None:
    """Raise ValueError if some classes are only tested and the method cannot answer with classes that nobody trained."""
    if novel and (not method.reads_text or method.needs_prior):
        raise ValueError(
            "clients.novel needs a method that reads text, with logit_prior none: others have no answer for classes that "
            "nobody trains"
        )


def check_private(method: Method, aggregation: Aggregation) -> None:
    """Raise ValueError if the aggregation is private and the method reads the clients' updates past it."""
    if not aggregation.private:
        return
    if any(moment.merge is not None for moment in moments(method)):
        raise ValueError(
            "its own merge() reads the clients' updates, which the aggregation's noise does not cover; private aggregations "
            "need a method without merge()"
        )
    if method.centralized:
        raise ValueError("a method without clients cannot be private for clients")


def check_parameters(method: Method, spec: Mapping[str, Param]) -> None:
    """Raise ValueError if the parameters `spec`, including those of the aggregation, do not fit the method's options."""
    local = sorted(name for name, param in spec.items() if param.home == "local")
    if method.needs_prior:
        local.append("prior (logit_prior must be none)")
    if method.centralized and local:
        raise ValueError(f"a method without clients cannot have local values: {', '.join(local[:3])}")
    if any(param.trains for param in spec.values()):
        return
    if method.finetune_epochs:
        raise ValueError(f"finetune_epochs is {method.finetune_epochs}, but this method trains nothing")
    if method.logit_prior == "train":
        raise ValueError(
            "logit_prior is 'train', but this method trains nothing; eval adds the prior where it has an effect"
        )
