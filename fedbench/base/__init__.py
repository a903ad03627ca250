"""What everything stands on: files, records, leases, random streams and words. Imports nothing above it."""
