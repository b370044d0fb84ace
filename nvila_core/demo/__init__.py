"""The demo world: a tiny NVILA-Lite, trained on rendered camera scenes, and all that made it.

`world` says what is in a scene, `render` draws it, `questions` asks and answers, `train` and
`export` make the checkpoint, `evaluate` measures it on scenes that training never saw, and
`video` renders a long street to stream.
"""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""Folder of the shipped checkpoint, in the published NVILA-Lite layout."""

CAPTION_PROMPT = "Describe the scene."
"""The question that the demo's standing watch asks."""

__all__ = ["CAPTION_PROMPT", "CHECKPOINT"]
