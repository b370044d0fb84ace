"""The demo world: rendered camera scenes, and a tiny NVILA-Lite that was trained on them.

`world` describes a scene, `render` draws it, `questions` asks about it and answers, `evaluate`
measures the checkpoint on scenes that training never saw, `policies` compares resolution policies,
and `video` renders a long street video to stream. `training` trains the checkpoint; it is not part
of the wheel.
"""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""Folder of the shipped checkpoint, in the published NVILA-Lite layout."""

__all__ = ["CHECKPOINT"]
