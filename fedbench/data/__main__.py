"""Lets `python -m fedbench.data` do what `fedbench data` does."""

from fedbench.cli.data import main

if __name__ == "__main__":
    raise SystemExit(main())
