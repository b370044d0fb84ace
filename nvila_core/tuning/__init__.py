"""Measure a machine with a model and write the settings that suit it."""
