"""What everything stands on: files, records, leases, random streams and words. Imports nothing of fedbench above it, and no torch."""
