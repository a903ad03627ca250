"""Makes ``python -m fedbench.bench`` the benchmark's command line: see `fedbench.bench.command`."""

from fedbench.bench import main

if __name__ == "__main__":
    raise SystemExit(main())
