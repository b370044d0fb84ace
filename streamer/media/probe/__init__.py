"""Examine a source step by step and name the step that fails."""
