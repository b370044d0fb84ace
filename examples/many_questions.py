"""Ask the engine many questions at once: they share each step, and the clip is read only once.

python examples/many_questions.py clip.mp4 "Is there a car?" "How many people are there?"
"""

import argparse

from nvila_core import NVILA, Engine, SamplingParams, Video
from nvila_core.demo import CHECKPOINT

parser = argparse.ArgumentParser()
parser.add_argument("video")
parser.add_argument("questions", nargs="+")
parser.add_argument("--model", default=CHECKPOINT, help="a checkpoint's folder, or its hub name")
arguments = parser.parse_args()

model = NVILA.from_pretrained(arguments.model)
clip = Video.from_path(arguments.video)
with Engine(model) as engine:
    # submit() returns at once and may be called from any thread
    handles = [
        engine.submit([clip, question], SamplingParams(max_tokens=64))
        for question in arguments.questions
    ]
    for question, handle in zip(arguments.questions, handles, strict=True):
        answer = handle.result(timeout=300)
        print(f"{question} {answer.text} ({answer.usage.cached_tokens} positions reused)")
