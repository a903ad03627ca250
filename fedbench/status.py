"""Lets `python -m fedbench.status` do what `fedbench status` does."""

from fedbench.cli.status import main

if __name__ == "__main__":
    raise SystemExit(main())
