"""Lets `python -m fedbench.methods` do what `fedbench methods` does."""

from fedbench.cli.list_methods import main

if __name__ == "__main__":
    raise SystemExit(main())
