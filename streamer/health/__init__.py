"""Which parts of an installation work: programs, servers, workers and GPUs."""
