"""The model worker: answers clips with one model and one engine."""
