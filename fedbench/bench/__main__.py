"""Lets `python -m fedbench.bench` do what `fedbench bench` does."""

from fedbench.bench import main

if __name__ == "__main__":
    raise SystemExit(main())
