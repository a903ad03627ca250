"""Downloads the backbones of a sweep before its jobs run without a network: `fedbench fetch-weights SWEEP`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import timm
from huggingface_hub import try_to_load_from_cache  # a dependency of timm

from fedbench.base.broken_pipe import exits_when_pipe_closes
from fedbench.cli.options import add_plugins, add_settings
from fedbench.cli.output import say
from fedbench.plan.config import BackboneConfig, ConfigError
from fedbench.plan.planning import read_sweep
from fedbench.vit import backbone, nano, two_towers

READY, FAILED, MISTAKE = 0, 1, 2
FILES = ("model.safetensors", "pytorch_model.bin")  # the names of weights on the Hugging Face hub, in timm's order

EPILOG = """\
Weights go where timm looks for them: into the cache of the Hugging Face hub, which HF_HOME moves. Jobs must see the same
folder. Exit code: 0 all weights are local, 1 some cannot be had, 2 a mistake in the file or on the command line.

examples:
  %(prog)s sweeps/main_table.yaml
  %(prog)s sweeps/main_table.yaml --set backbone.name=vit_small_patch16_224.augreg_in21k
"""


def parser(program: str = "fedbench fetch-weights") -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(
        prog=program,
        description="Download the weights of a sweep's timm backbones that are not local yet.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("sweep", type=Path, help="sweep file; fedbench's own also by name: quickstart")
    add_plugins(options)
    add_settings(options)
    return options


@exits_when_pipe_closes
def main(arguments: Sequence[str] | None = None, program: str = "fedbench fetch-weights") -> int:
    """Fetch the weights of every backbone of the sweep, print a line for each, and return the exit code."""
    options = parser(program).parse_args(arguments)
    try:
        runs = read_sweep(options.sweep, options.plugins, options.settings).runs
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return MISTAKE
    backbones = {(planned.run.backbone.name, planned.run.backbone.weights): planned.run.backbone for planned in runs}
    code = READY
    for config in backbones.values():
        try:
            say(f"{config.name}: {fetch(config)}")
        except Exception as error:  # noqa: BLE001 - a download may raise anything, and other backbones follow
            sys.stderr.write(f"error: {config.name}: {' '.join(str(error).split()) or type(error).__name__}\n")
            code = FAILED
    return code


def fetch(config: BackboneConfig) -> str:
    """Load the backbone as a run does, which downloads its weights if they are not local. Returns what was done.

    Raises BackboneError, or what the download raises.
    """
    if config.name in (*nano.NAMES, two_towers.EMBEDDED):
        return "embedded in fedbench, nothing to fetch"
    if config.weights is not None:
        return f"read from {config.weights}, nothing to fetch"
    cached = is_cached(config.name)
    backbone.make(config.name, None, config.image_size, pool=config.pool)
    return "local already" if cached else "downloaded"


def is_cached(name: str) -> bool:
    """Whether the cache of the Hugging Face hub has the weights of the timm model `name`."""
    pretrained = timm.get_pretrained_cfg(name) if timm.is_model(name.split(".")[0]) else None
    if pretrained is None or not pretrained.hf_hub_id:
        return False
    repository, _, revision = pretrained.hf_hub_id.partition("@")
    names = (pretrained.hf_hub_filename,) if pretrained.hf_hub_filename else FILES
    return any(
        isinstance(try_to_load_from_cache(repository, file, revision=revision or None), str | Path) for file in names
    )
