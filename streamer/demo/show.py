"""Run the demo: start the service, attach, show captions, ask twice, sum up, clean up."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.text import Text

from streamer.alert_rule import AlertRule
from streamer.demo.loopback_camera import LoopbackCamera
from streamer.demo.scenery import (
    CAMERA_SECONDS,
    CAMERA_SEED,
    FILE_SECONDS,
    FILE_SEED,
    Rendering,
    sign_number,
)
from streamer.demo.tally import Tally
from streamer.demo.timed_question import TimedQuestion
from streamer.domain.result import Result
from streamer.domain.sampling import Sampling
from streamer.domain.stream import Stream
from streamer.domain.watch import Watch
from streamer.local.installation import Installation
from streamer.local.signals import Interrupted, StopSignals
from streamer.service import CAPTION_PROMPT, Service
from streamer.settings import Settings
from streamer.terminal import console, print_result

WINDOW, FPS, FRAMES = 4.0, 1.0, 4
"""Window in seconds, rate and frames of the demo model's training: four frames, 1 s apart."""

CAMERA = "camera"
CAR = "Is there a car?"

EXTRA_SECONDS = 60.0
"""Maximum seconds to wait longer for late captions or answers."""

INTERRUPTED = 130

REAL_MODEL = "streamer up --model Efficient-Large-Model/NVILA-Lite-2B"


def run_demo(
    settings: Settings, seconds: float, sources: list[str], model: str | None, keep: bool
) -> int:
    """Run the demo and return its exit code: 0 if all captions and both answers arrived."""
    out = console()
    with StopSignals() as stop, _temporary_directory() as directory:
        show = Show(settings, directory, out, stop, sources, model, keep=keep)
        try:
            code = show.play(time.monotonic() + seconds)
            if keep:
                show.keep_running()
            return code
        except Interrupted:
            out.print("Interrupted. Stopping everything ...")
            return INTERRUPTED
        finally:
            show.close()


@contextmanager
def _temporary_directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="nvila-streamer-demo-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class Show:
    """One run of the demo in one temporary directory."""

    def __init__(
        self,
        settings: Settings,
        directory: Path,
        out: Console,
        stop: StopSignals,
        sources: list[str],
        model: str | None,
        *,
        keep: bool = False,
    ) -> None:
        self._keep = keep
        self._out = out
        self._stop = stop
        self._sources = sources
        self._own_model = model is not None or settings.model != "demo"
        self._directory = directory
        self._cleanup = ExitStack()
        self._tally = Tally()
        self._streams: list[Stream] = []
        data_dir, temporary = directory / "data", directory / "tmp"
        temporary.mkdir()
        self._installation = Installation(
            settings.model_copy(
                update={
                    "redis_url": None,
                    "frames_redis_url": None,
                    "data_dir": data_dir,
                    "database_url": f"sqlite:///{data_dir / 'timeline.db'}",
                    "api_host": "127.0.0.1",
                    "api_port": 0,
                    "api_keys": [],
                    **({"model": model} if model is not None else {}),
                }
            ),
            environment={"TMPDIR": str(temporary)},  # of PyTorch's caches, removed at the end
            say=lambda news: out.print(Text(news, "yellow")),
        )

    def close(self) -> None:
        """Stop everything that runs."""
        try:
            self._cleanup.close()
        finally:
            self._installation.stop()

    def play(self, until: float) -> int:
        """Run the whole demo and return the exit code."""
        self._introduce()
        with self._out.status("Rendering a street, starting servers, loading the model ..."):
            sources = self._prepare()
        self._out.print(
            Text.assemble("Open ", (self._installation.api_url, "bold"), " in a browser."),
            soft_wrap=True,
        )
        self._attach(sources)
        questions = self._questions()
        self._watch_and_ask(questions, until)
        return self._sum_up(questions)

    def _introduce(self) -> None:
        self._out.print(Text("NVILA Streamer: cameras in, captions and answers out.", "bold"))
        if not self._own_model:
            self._out.print(
                "The model is a tiny NVILA-Lite that knows only a rendered street: people, cars, "
                "bikes, boxes, a sign.\n"
                f"For the real model: {REAL_MODEL} (or -8B; its weights are CC-BY-NC-4.0).",
                soft_wrap=True,
            )

    def _prepare(self) -> list[tuple[str, str | None]]:
        """Render the videos while the service starts; return the sources to attach and names."""
        enter = self._cleanup.enter_context
        videos = self._directory / "videos"  # a separate folder: the camera serves all of it
        videos.mkdir()
        film = Rendering(videos / "recording.mp4", seed=FILE_SEED, seconds=FILE_SECONDS)
        renderings = [enter(film)]
        if not self._sources:
            street = Rendering(videos / "street.mp4", seed=CAMERA_SEED, seconds=CAMERA_SECONDS)
            renderings.append(enter(street))
        self._installation.start()
        while not (self._installation.ready() and all(each.done() for each in renderings)):
            self._stop.wait(0.1)
            self._stop.check()
        sources: list[tuple[str, str | None]] = [(source, None) for source in self._sources]
        if not self._sources:
            sources.append((enter(LoopbackCamera(street.path)).url, CAMERA))
        sources.append((str(film.path), "recording"))
        self._client = enter(Service(self._installation.settings))
        return sources

    def _attach(self, sources: list[tuple[str, str | None]]) -> None:
        client = self._client
        self._last_id = client.queue.last_id()
        for source, name in sources:
            self._stop.call(partial(client.probe, source))  # may block; safe to abandon
            watches = [client.watch(CAPTION_PROMPT, window=WINDOW, max_frames=FRAMES)]
            if self._keep and name == CAMERA and not self._own_model:
                watches.append(self._alert())
            stream = client.attach(
                source, name, sampling=Sampling(fps=FPS), watches=watches, probe=False
            )
            self._streams.append(stream)
            self._out.print(
                Text.assemble("Attached ", (stream.name, "cyan"), f": {stream.url}"), soft_wrap=True
            )

    def _alert(self) -> Watch:
        """Return a watch that opens an incident while a car is on the street."""
        rule = AlertRule(title="A car is on the street", cooldown=0)
        return self._client.watch(CAR, window=WINDOW, max_frames=FRAMES, alert=rule)

    def _questions(self) -> "list[TimedQuestion]":
        stream = self._streams[0]
        if self._sources:
            return [
                TimedQuestion("What is in the picture?", stream, not_before=WINDOW),
                TimedQuestion("What changed?", stream, since="-10s", until="-2s", not_before=11.0),
            ]
        sign = sign_number(CAMERA_SEED)
        return [
            TimedQuestion("What number is on the sign?", stream, not_before=WINDOW + 1, truth=sign),
            TimedQuestion("How many cars are there?", stream, "-10s", "-6s", not_before=11.0),
        ]

    def _watch_and_ask(self, questions: "list[TimedQuestion]", until: float) -> None:
        began = time.monotonic()
        until = max(until, began)
        with self._out.status("Watching ...") as status:
            while not self._over(questions, until):
                self._stop.check()
                self._installation.poll()
                for entry_id, result in self._client.queue.read(self._last_id, 0.2):
                    self._last_id = entry_id
                    self._show(result, questions)
                now = time.monotonic()
                for question in questions:
                    if now - began >= question.not_before:
                        question.ask(self._client)
                left = until - now
                status.update(f"Watching, {left:.0f} s left" if left > 0 else "Waiting for answers")

    def _over(self, questions: "list[TimedQuestion]", until: float) -> bool:
        now = time.monotonic()
        return now >= until and (self._complete(questions) or now >= until + EXTRA_SECONDS)

    def _show(self, result: Result, questions: "list[TimedQuestion]") -> None:
        width = max(len(stream.name) for stream in self._streams)
        print_result(self._out, result, width, costs=True)
        if result.watch_id is not None:
            self._tally.add(result)
        for question in questions:
            if question.query is not None and question.query.id == result.request_id:
                question.result = result

    def _complete(self, questions: "list[TimedQuestion]") -> bool:
        answered = all(question.result is not None for question in questions)
        return answered and all(self._tally.captions(stream.id) for stream in self._streams)

    def _sum_up(self, questions: "list[TimedQuestion]") -> int:
        self._out.print()
        for question in questions:
            self._out.print(question.summary(), soft_wrap=True)
        streams = [self._client.stream(stream.id) for stream in self._streams]
        self._out.print(self._tally.table(streams))
        missing = [
            f"no caption of '{stream.name}'"
            + (f" ({stream.error.message})" if stream.error is not None else "")
            for stream in streams
            if not self._tally.captions(stream.id)
        ]
        missing += [f"no answer to '{q.prompt}'" for q in questions if not q.answered]
        if missing:
            self._out.print(Text(f"Incomplete: {', '.join(missing)}.", "red"))
        return 1 if missing else 0

    def keep_running(self) -> None:
        """Keep running until a signal arrives."""
        self._out.print(
            f"Still running. Open {self._installation.api_url}\n"
            "In another terminal:\n"
            f"  export STREAMER_DATA_DIR={self._installation.settings.data_dir}\n"
            f'  streamer ask {self._streams[0].name} "{CAPTION_PROMPT}"\n'
            "Press Ctrl-C to stop it and remove everything.",
            soft_wrap=True,
        )
        while not self._stop.wait(0.25):
            self._installation.poll()
