"""Lets `python -m fedbench` do what `fedbench` does."""

from fedbench.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
