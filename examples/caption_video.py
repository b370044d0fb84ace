"""Caption a video file, or ask about it, with the model alone: no service, no Redis.

python examples/caption_video.py clip.mp4
python examples/caption_video.py clip.mp4 "Is there a car?" --model ./NVILA-Lite-2B
"""

import argparse

from nvila_core import NVILA, SamplingParams, Video
from nvila_core.demo import CHECKPOINT

parser = argparse.ArgumentParser()
parser.add_argument("video")
parser.add_argument("question", nargs="?", default="Describe the scene.")
parser.add_argument("--model", default=CHECKPOINT, help="a checkpoint's folder, or its hub name")
arguments = parser.parse_args()

model = NVILA.from_pretrained(arguments.model)
answer = model.generate(
    [Video.from_path(arguments.video), arguments.question],
    SamplingParams(max_tokens=64),
)
print(answer.text)
print(f"({answer.usage.vision_tokens} vision tokens, {answer.usage.completion_tokens} tokens out)")
