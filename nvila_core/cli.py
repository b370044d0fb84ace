"""`python -m nvila_core ask --model PATH photo.jpg "question"`: the model on its own; `tune`."""

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvila_core.errors import NVILAError, PromptError, first_line

if TYPE_CHECKING:
    from nvila_core.generation.completion import Completion
    from nvila_core.prompt.builder import Prompt

EXAMPLES = """examples:
  python -m nvila_core ask --model Efficient-Large-Model/NVILA-Lite-2B photo.jpg "What is this?"
  python -m nvila_core ask --model ./checkpoint --stream clip.mp4 "What happens?"
  python -m nvila_core ask --model ./checkpoint --policy adaptive photo.jpg "What does it say?"
  python -m nvila_core ask --model ./checkpoint --json a.png b.png "What is the difference?"
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m nvila_core",
        description="NVILA and NVILA-Lite without the service around it.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    ask = commands.add_parser(
        "ask",
        help="ask about images and videos",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    ask.add_argument(
        "inputs", nargs="+", metavar="FILE... QUESTION", help="media files, then the question"
    )
    ask.add_argument("--model", required=True, help="checkpoint folder or Hugging Face hub id")
    ask.add_argument("--revision", help="branch, tag or commit on the hub")
    ask.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1")
    ask.add_argument("--dtype", default="auto", help="auto (default), float32, float16, bfloat16")
    ask.add_argument(
        "--quantize", choices=("int8", "int4"), help="weights in fewer bits, for less memory"
    )
    ask.add_argument("--system", help="system prompt instead of the model's own")
    ask.add_argument("--frames", type=int, help="frames looked at in each video")
    ask.add_argument(
        "--policy",
        default="native",
        help="tiles of each frame: native (default, as published), fixed:4, adaptive, adaptive:12",
    )
    ask.add_argument("--video-max-tiles", type=int, help="tiles of a frame at most (default 1)")
    ask.add_argument("--max-tokens", type=int, default=512, help="longest answer (default 512)")
    ask.add_argument("--temperature", type=float, default=0.0, help="0 (default) is greedy")
    ask.add_argument("--top-p", type=float, default=1.0)
    ask.add_argument("--top-k", type=int, default=0)
    ask.add_argument("--seed", type=int, help="makes sampling repeatable")
    ask.add_argument(
        "--stop", action="append", default=[], help="text that ends the answer; repeatable"
    )
    ask.add_argument(
        "--choice", action="append", default=[], help="the answer is one of these; repeatable"
    )
    ask.add_argument(
        "--json-schema", metavar="FILE_OR_TEXT", help="the answer is JSON that fits this schema"
    )
    ask.add_argument("--stream", action="store_true", help="print the answer as it is generated")
    ask.add_argument("--json", action="store_true", help="print JSON with usage and timings")
    ask.add_argument("--debug", action="store_true", help="show the traceback of an error")
    tune = commands.add_parser("tune", help="find the engine settings for this machine and model")
    tune.add_argument("--model", required=True, help="checkpoint folder or Hugging Face hub id")
    tune.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1")
    tune.add_argument(
        "--quantize", choices=("int8", "int4"), help="as the model will be used; see ask"
    )
    tune.add_argument("--seconds", type=float, default=60, help="to take, about (default 60)")
    tune.add_argument(
        "--out", type=Path, default=Path("tuned.yaml"), help="settings file (default tuned.yaml)"
    )
    tune.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def open_media(name: str) -> Any:
    """An image or a video from a path; a directory is a video of its images.

    Raises:
        MediaError: nothing there, or neither an image nor a video.
    """
    from PIL import Image, UnidentifiedImageError

    from nvila_core.media.video import Video
    from nvila_core.media.video_file import open_image, open_video

    path = Path(name)
    if path.is_file():
        try:
            with Image.open(path) as image:
                moving = getattr(image, "n_frames", 1) > 1
            if not moving:
                return open_image(path)
        except (UnidentifiedImageError, OSError):
            pass
        open_video(path).close()
    return Video.from_path(path)


def read_question(inputs: list[str]) -> tuple[list[str], str]:
    """The media files and the question, which comes last.

    Raises:
        PromptError: the question was forgotten.
    """
    *files, question = inputs
    if os.path.exists(question):
        raise PromptError(
            f"The last argument is the question, but {question} is a file; add a question."
        )
    return files, question


def read_schema(schema: str | None) -> str | None:
    """A JSON schema given as text, or as the name of a file that holds it.

    Raises:
        PromptError: there is no such file.
    """
    if schema is None or schema.lstrip().startswith(("{", "[")):
        return schema
    try:
        return Path(schema).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise PromptError(f"The JSON schema {schema} cannot be read: {reason}.") from None


def ask(args: argparse.Namespace) -> None:
    """Answer one question and print it."""
    files, question = read_question(args.inputs)
    parts = [*(open_media(file) for file in files), question]
    from nvila_core.generation.sampling import SamplingParams
    from nvila_core.model import NVILA
    from nvila_core.resolution.policy import Native, parse_policy

    policy = parse_policy(args.policy)
    if args.video_max_tiles and not isinstance(policy, Native):
        raise PromptError(
            f"--video-max-tiles belongs to the published rule, and --policy {args.policy} is "
            "another: leave out one of the two."
        )
    params = SamplingParams(
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        seed=args.seed,
        stop=args.stop,
        choice=args.choice,
        json_schema=read_schema(args.json_schema),
    )
    model = NVILA.from_pretrained(
        args.model, args.device, args.dtype, args.revision, quantize=args.quantize
    )
    messages: list[dict[str, Any]] = [{"role": "user", "content": parts}]
    if args.system is not None:
        messages.insert(0, {"role": "system", "content": args.system})
    prompt = model.prepare(
        messages,
        num_video_frames=args.frames,
        video_max_tiles=args.video_max_tiles,
        video_as="video" if (args.video_max_tiles or 1) > 1 else None,
        policy=policy,
    )

    def show(delta: str) -> None:
        print(
            json.dumps({"delta": delta}) if args.json else delta,
            end="\n" if args.json else "",
            flush=True,
        )

    completion = model.generate(prompt, params, on_text=show if args.stream else None)
    if args.json:
        print(json.dumps(record(completion, model.name, prompt)))
    else:
        print("" if args.stream else completion.text)


def tune(args: argparse.Namespace) -> None:
    """Measure, write a settings file, and say what was found."""
    from nvila_core.tuning.tuner import tune_to_file

    tuning = tune_to_file(
        args.model,
        args.device,
        args.seconds,
        args.out,
        quantize=args.quantize,
        say=lambda line: print(line, flush=True),
    )
    print(tuning.summary)
    print(f"Written: {args.out}. Use it: streamer --config {args.out} worker")


def record(completion: "Completion", model: str, prompt: "Prompt") -> dict[str, Any]:
    """A completion as one JSON object, with the grid of every frame and why."""
    plan = [asdict(frame) for frame in prompt.plan.frames]
    return {"model": model, **asdict(completion), "plan": plan}


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 on success, 1 on an error, 130 on Ctrl-C."""
    args = build_parser().parse_args(argv)
    try:
        {"ask": ask, "tune": tune}[args.command](args)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1
    except (NVILAError, MemoryError, OSError, RuntimeError) as error:
        if args.debug:
            raise
        print(f"error: {first_line(error)}", file=sys.stderr)
        return 1
    return 0
