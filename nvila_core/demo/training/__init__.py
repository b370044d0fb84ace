"""Train the demo checkpoint. Not part of the wheel."""
