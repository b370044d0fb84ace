"""Train the demo checkpoint; not part of the wheel."""
