"""Runs on a machine or a Slurm cluster: workers, supervision, failures and the live table."""
