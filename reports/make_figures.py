"""Makes every table and figure of a comparison: `python reports/make_figures.py [sweeps/main_table.yaml ...]`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works without installing the project

from fedbench.cli.figures import main

if __name__ == "__main__":
    sys.exit(main())
