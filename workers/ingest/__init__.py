"""The ingest worker: decodes streams, stores sampled frames, submits clips."""
