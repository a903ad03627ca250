"""Entry point of `python -m fedbench.bench`, the same as `fedbench bench`."""

from fedbench.bench import main

if __name__ == "__main__":
    raise SystemExit(main())
