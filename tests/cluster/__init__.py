"""A small cluster under random faults, and a ledger of what it lost: `python -m tests.cluster`."""
