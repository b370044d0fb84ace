"""Measure a model on this machine and write the engine settings that suit them."""
