"""Sampled frames: the Redis store, the archive, and the choice of frames for a question."""
