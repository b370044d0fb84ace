"""The command line of the model alone: `python -m nvila_core ask` and `tune`."""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvila_core.errors import MediaWarning, NVILAError, PromptError, first_line, shorten
from nvila_core.generation.schema_limits import MAX_SCHEMA, check_schema_length
from nvila_core.model_packages import require_model_packages
from nvila_core.quantization import QUANTIZATIONS

if TYPE_CHECKING:
    from nvila_core.generation.completion import Completion
    from nvila_core.prompt.builder import Prompt

_EXAMPLES = """examples:
  python -m nvila_core ask --model Efficient-Large-Model/NVILA-Lite-2B photo.jpg "What is this?"
  python -m nvila_core ask --model ./checkpoint --stream clip.mp4 "What happens?"
  python -m nvila_core ask --model ./checkpoint --policy adaptive photo.jpg "What does it say?"
  python -m nvila_core ask --model ./checkpoint --json a.png b.png "What is the difference?"
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="python -m nvila_core",
        description="Run NVILA and NVILA-Lite without the streaming service.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    ask = commands.add_parser(
        "ask",
        help="answer a question about images and videos",
        description="Answer a question about images and videos.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    ask.add_argument(
        "inputs",
        nargs="+",
        metavar="FILE... QUESTION",
        help="images, videos or folders of frames, then the question",
    )
    ask.add_argument("--model", required=True, help="checkpoint folder or Hugging Face hub id")
    ask.add_argument("--revision", help="branch, tag or commit on the hub")
    ask.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:1")
    ask.add_argument("--dtype", default="auto", help="auto (default), float32, float16 or bfloat16")
    ask.add_argument(
        "--quantize", choices=QUANTIZATIONS, help="store weights in fewer bits to save memory"
    )
    ask.add_argument("--system", help="system prompt (default: the checkpoint's)")
    ask.add_argument(
        "--frames", type=int, help="frames sampled from each video (default: the checkpoint's)"
    )
    ask.add_argument(
        "--policy",
        default="native",
        help="tiles of each frame: native (default, as published), fixed:4, adaptive, adaptive:12",
    )
    ask.add_argument(
        "--video-max-tiles",
        type=int,
        help="maximum number of tiles of a frame with --policy native (default: the checkpoint's)",
    )
    ask.add_argument(
        "--max-tokens", type=int, default=512, help="maximum length of the answer (default 512)"
    )
    ask.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        help="randomness of the answer (default 0, greedy)",
    )
    ask.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        help="sample from the fewest tokens with this total probability (default 1, all)",
    )
    ask.add_argument(
        "--top-k",
        type=int,
        default=0,
        help="sample from this many of the most likely tokens (default 0, all)",
    )
    ask.add_argument("--seed", type=int, help="seed that makes sampling repeatable")
    ask.add_argument(
        "--stop", action="append", default=[], help="text that ends the answer; repeatable"
    )
    ask.add_argument(
        "--choice", action="append", default=[], help="allow this answer only; repeatable"
    )
    ask.add_argument(
        "--json-schema",
        metavar="FILE_OR_TEXT",
        help="JSON schema that the answer, which is then JSON, must fit",
    )
    ask.add_argument("--stream", action="store_true", help="print the answer as it is generated")
    ask.add_argument(
        "--json", action="store_true", help="print the answer, usage and timings as JSON"
    )
    ask.add_argument("--debug", action="store_true", help="show the traceback of an error")
    tune = commands.add_parser(
        "tune",
        help="find the best engine settings for this machine and model",
        description="Find the best engine settings for this machine and model.",
    )
    tune.add_argument("--model", required=True, help="checkpoint folder or Hugging Face hub id")
    tune.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:1")
    tune.add_argument("--quantize", choices=QUANTIZATIONS, help="quantization to tune for; see ask")
    tune.add_argument(
        "--seconds", type=float, default=60, help="approximate duration of tuning (default 60)"
    )
    tune.add_argument(
        "--out",
        type=Path,
        default=Path("tuned.yaml"),
        help="settings file to write (default tuned.yaml)",
    )
    tune.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def open_media(name: str) -> Any:
    """Open an image or a video; a folder is a video of its images.

    Raises:
        MediaError: the path does not exist, or is neither an image nor a video.
    """
    from nvila_core.file_kind import file_kind, read_head
    from nvila_core.media.picture import is_animated, open_image
    from nvila_core.media.video import Video
    from nvila_core.media.video_file import VideoFile, open_video

    path = Path(name)
    if path.is_file():
        kind = file_kind(read_head(path))
        if kind is not None and not is_animated(path):
            return open_image(path)  # or the error that says what else it is
        if kind is None and _is_rare_picture(path):
            return open_image(path)
    video = Video.from_path(path)
    if isinstance(video.source, VideoFile) and path.is_file():
        open_video(path).close()  # raises for what is not a video, before the model is loaded
    return video


def _is_rare_picture(path: Path) -> bool:
    """Return whether Pillow knows a file that has none of the common signatures."""
    from PIL import Image

    from nvila_core.media.picture import UNREADABLE

    try:
        with Image.open(path) as image:
            return getattr(image, "n_frames", 1) == 1
    except UNREADABLE:
        return False


def read_question(inputs: list[str]) -> tuple[list[str], str]:
    """Return the media files and the question, which is the last input.

    Raises:
        PromptError: the last input is a file.
    """
    *files, question = inputs
    if os.path.exists(question):
        raise PromptError(
            f"The last argument must be the question, but {question} is a file: add a question."
        )
    return files, question


def read_schema(schema: str | None) -> str | None:
    """Return a JSON schema given as text or as the path of a file.

    Raises:
        PromptError: the file cannot be read, or is too long.
    """
    if schema is None or schema.lstrip().startswith(("{", "[")):
        return schema
    try:
        with open(schema, encoding="utf-8") as file:
            text = file.read(MAX_SCHEMA + 1)
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise PromptError(f"The JSON schema {schema} cannot be read: {reason}.") from None
    check_schema_length(text)
    return text


def run_ask(args: argparse.Namespace) -> None:
    """Answer one question and print the answer, and notes about how the media were used."""
    with notes_on_stderr() as notes:
        answer_question(args, notes)


@contextmanager
def notes_on_stderr() -> Iterator[list[str]]:
    """Print each MediaWarning once, as a note, and yield the list of them."""
    notes: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always", MediaWarning)
        show_others = warnings.showwarning

        def show(message: Any, category: Any, *place: Any, **more: Any) -> None:
            if not issubclass(category, MediaWarning):
                show_others(message, category, *place, **more)
            elif str(message) not in notes:
                notes.append(str(message))
                print(f"note: {message}", file=sys.stderr)

        warnings.showwarning = show
        yield notes


def answer_question(args: argparse.Namespace, notes: list[str]) -> None:
    """Answer one question and print the answer; `notes` become part of the JSON."""
    files, question = read_question(args.inputs)
    parts = [*(open_media(file) for file in files), question]
    from nvila_core.generation.grammar import is_complete
    from nvila_core.generation.sampling import SamplingParams
    from nvila_core.model import NVILA
    from nvila_core.resolution.policy import Native, parse_policy

    policy = parse_policy(args.policy)
    if args.video_max_tiles and not isinstance(policy, Native):
        raise PromptError(
            f"--video-max-tiles works with --policy native only, not with --policy {args.policy}: "
            "omit one of the two."
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
    constrained = bool(params.choice) or params.json_schema is not None
    whole = not constrained or is_complete(
        completion.text,
        completion.finish_reason,
        choice=tuple(params.choice),
        schema=params.json_schema is not None,
    )
    if args.json:
        print(json.dumps(as_record(completion, model.name, prompt) | {"notes": notes}))
    elif whole or args.stream:
        print("" if args.stream else completion.text)
    if not whole:
        raise NVILAError(
            f"The answer was cut after {completion.usage.completion_tokens} tokens, before its "
            f"form was complete ({shorten(completion.text)}): raise --max-tokens, or request a "
            "smaller form."
        )


def run_tune(args: argparse.Namespace) -> None:
    """Tune the engine, write the settings file, and print the result."""
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
    print(f"Wrote {args.out}. To use it: streamer --config {args.out} worker")


def as_record(completion: "Completion", model: str, prompt: "Prompt") -> dict[str, Any]:
    """Return a completion as one JSON object, with the grid of every frame and its reason."""
    plan = [asdict(frame) for frame in prompt.plan.frames]
    return {"model": model, **asdict(completion), "plan": plan}


def main(argv: list[str] | None = None) -> int:
    """Run a command and return the exit code: 0 on success, 1 on an error, 130 on Ctrl-C."""
    args = build_parser().parse_args(argv)
    try:
        require_model_packages()
        {"ask": run_ask, "tune": run_tune}[args.command](args)
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
