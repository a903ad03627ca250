"""Lets `python -m fedbench.completion` do what `fedbench completion` does."""

from fedbench.cli.completion import main

if __name__ == "__main__":
    raise SystemExit(main())
