"""Lets `python -m fedbench.sweep` do what `fedbench sweep` does."""

from fedbench.cli.sweep import main

if __name__ == "__main__":
    raise SystemExit(main())
