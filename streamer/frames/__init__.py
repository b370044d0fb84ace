"""Store sampled frames in Redis and the archive, and select frames for a question."""
