"""The GPU worker: answer clips with one model and one engine."""
