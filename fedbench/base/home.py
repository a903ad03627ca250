"""Where the project's own plug-ins and sweeps are: beside the package in a checkout, inside it in an installation.

An installation has them in `fedbench/_home/`, since a top-level `datasets` in site-packages would shadow the package of that
name.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
ROOT = PACKAGE.parent  # what PYTHONPATH must hold to find the package
INSTALLED = (PACKAGE / "_home").is_dir()
HOME = PACKAGE / "_home" if INSTALLED else ROOT  # the folder that holds methods/, datasets/, sweeps/ and reports/


def sweep_file(path: Path) -> Path:
    """`path` if it is a file, else the project's own sweep of that name: `quickstart` or `sweeps/quickstart.yaml`."""
    shipped = HOME / "sweeps" / f"{path.stem}.yaml"
    named = path.parent in (Path(), Path("sweeps")) and path.suffix in ("", ".yaml")
    return shipped if named and not path.is_file() and shipped.is_file() else path
