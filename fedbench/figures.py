"""Lets `python -m fedbench.figures` do what `fedbench figures` does."""

from fedbench.cli.figures import main

if __name__ == "__main__":
    raise SystemExit(main())
