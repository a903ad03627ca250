"""Makes ``python -m fedbench.data`` the command line of the data: see `fedbench.data_cli`."""

from fedbench.cli.data import main

if __name__ == "__main__":
    raise SystemExit(main())
