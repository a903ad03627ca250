"""Lets `python -m fedbench.check` do what `fedbench check` does."""

from fedbench.cli.check import main

if __name__ == "__main__":
    raise SystemExit(main())
