"""Sources: which may be attached, which are, what was uploaded, and their live video."""
