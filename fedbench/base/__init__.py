"""The lowest layer: files, records, leases, random streams, names. It imports no other folder and no torch."""
