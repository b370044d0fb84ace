"""An RQ worker that runs many jobs at once in threads."""
