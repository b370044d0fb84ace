"""Train, evaluate or render the demo: `python -m nvila_core.demo train | evaluate | render`."""

import argparse
import json
import os
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from nvila_core.demo import CHECKPOINT


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m nvila_core.demo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser(
        "train", help="train the demo checkpoint from scratch, or continue training it"
    )
    train.add_argument(
        "--see-minutes",
        type=float,
        default=25,
        help="duration of the first stage: vision tower and projector",
    )
    train.add_argument(
        "--watch-minutes", type=float, default=10, help="duration of the second stage: motion"
    )
    train.add_argument(
        "--answer-minutes", type=float, default=60, help="duration of the third stage: answers"
    )
    train.add_argument(
        "--run",
        type=Path,
        default=Path(tempfile.gettempdir()) / "nvila-demo-run",
        help="folder for the training state",
    )
    train.add_argument("--out", type=Path, default=CHECKPOINT, help="folder of the checkpoint")
    start = train.add_mutually_exclusive_group()
    start.add_argument(
        "--resume", action="store_true", help="continue from the state in the run's folder"
    )
    train.add_argument(
        "--again", action="store_true", help="repeat the last three quarters of the last stage"
    )
    start.add_argument(
        "--start-from",
        type=Path,
        metavar="CHECKPOINT",
        help="start from the weights of this checkpoint, in the middle of the last stage",
    )
    train.add_argument("--threads", type=int, default=2, help="number of PyTorch threads")
    train.add_argument("--workers", type=int, default=1, help="processes that render batches")
    train.add_argument(
        "--batch-scale", type=int, default=1, help="factor on the batches of the last stage"
    )
    train.add_argument(
        "--frozen",
        type=float,
        help="share of the last stage in which the vision tower is frozen, so that its features "
        "can be cached (default: 0.8; 0: it learns throughout)",
    )
    evaluate = commands.add_parser(
        "evaluate", help="measure the exact-match accuracy on held-out scenes"
    )
    evaluate.add_argument(
        "--checkpoint", type=Path, default=CHECKPOINT, help="folder of the checkpoint"
    )
    evaluate.add_argument(
        "--questions", type=int, default=150, help="number of questions of each kind"
    )
    evaluate.add_argument("--seed", type=int, default=0, help="seed of the held-out scenes")
    evaluate.add_argument("--device", default="cpu", help="cpu, cuda, or auto")
    evaluate.add_argument("--json", action="store_true", help="print JSON")
    evaluate.add_argument("--mistakes", action="store_true", help="also print every wrong answer")
    evaluate.add_argument(
        "--policies", action="store_true", help="compare resolution policies on clips instead"
    )
    evaluate.add_argument(
        "--svg", type=Path, help="with --policies: also write a chart to this file"
    )
    render = commands.add_parser("render", help="render a long street video to stream")
    render.add_argument("out", type=Path, help="MP4 file to write")
    render.add_argument("--seconds", type=float, default=60, help="duration of the video")
    render.add_argument("--fps", type=int, default=10, help="frames per second")
    render.add_argument("--seed", type=int, default=1, help="seed of the scene")
    options = parser.parse_args(arguments)
    return {"train": _train, "evaluate": _evaluate, "render": _render}[options.command](options)


def _train(options: argparse.Namespace) -> int:
    if find_spec("nvila_core.demo.training") is None:
        print("The wheel has no training modules: train from a source checkout.", file=sys.stderr)
        return 1
    # Threads that spin while they wait halve the speed on a machine with other work to do.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from dataclasses import replace

    import torch

    from nvila_core.demo.training.config import SHAPE, TRAINING
    from nvila_core.demo.training.train import Trainer

    torch.set_num_threads(options.threads)
    options.run.mkdir(parents=True, exist_ok=True)
    config = replace(TRAINING, workers=options.workers, batch_scale=options.batch_scale)
    if options.frozen is not None:
        config = replace(config, frozen=options.frozen)
    trainer = Trainer(SHAPE, config, options.run, options.out)
    if options.start_from:
        trainer.start_from(options.start_from)
    if options.resume:
        trainer.resume()
    if options.again:
        trainer.done["answer"] = 0.25
    trainer.see(options.see_minutes)
    trainer.watch(options.watch_minutes)
    trainer.answer(options.answer_minutes)
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from nvila_core.demo.evaluate import evaluate, format_table

    if options.policies:
        return _compare_policies(options)
    show = (lambda line: print(line, file=sys.stderr)) if options.mistakes else None
    scores = evaluate(options.checkpoint, options.questions, options.seed, options.device, show)
    if options.json:
        print(
            json.dumps([vars(score) | {"accuracy": score.accuracy} for score in scores], indent=2)
        )
    else:
        print(format_table(scores))
    return 0


def _compare_policies(options: argparse.Namespace) -> int:
    from nvila_core.demo.chart import draw_policies
    from nvila_core.demo.policies import evaluate_policies, format_policies

    scores = evaluate_policies(
        options.checkpoint,
        options.questions,
        options.seed,
        options.device,
        lambda line: print(line, file=sys.stderr),
    )
    if options.svg is not None:
        options.svg.write_text(draw_policies(scores), encoding="utf-8")
    if options.json:
        print(json.dumps([score.record() for score in scores], indent=2))
    else:
        print(format_policies(scores))
    return 0


def _render(options: argparse.Namespace) -> int:
    from nvila_core.demo.video import StreetVideo, write_video

    video = StreetVideo(options.seed, options.seconds, options.fps)
    write_video(options.out, video)
    print(f"{options.out}: {options.seconds:g} s, the number on the sign is {video.sign_number}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
