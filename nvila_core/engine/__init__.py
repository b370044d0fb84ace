"""Continuous batching: schedule, batch and run many requests on one model."""
