"""The ingest worker: decode streams, store sampled frames, submit clips."""
