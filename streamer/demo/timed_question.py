"""A question that the demo asks when its stream has something to look at."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamer.domain.query import Query
from streamer.domain.result import Result
from streamer.domain.stream import Stream
from streamer.errors import ErrorCode, StreamerError
from streamer.service import Service

if TYPE_CHECKING:
    from rich.text import Text


@dataclass
class TimedQuestion:
    """A question to ask `not_before` seconds into the demo, and its answer.

    `since` and `until` are relative to the moment of asking; `truth` is the right answer, if known.
    """

    prompt: str
    stream: Stream
    since: str | None = None
    until: str | None = None
    not_before: float = 0.0
    truth: str | None = None
    query: Query | None = None
    result: Result | None = None

    @property
    def answered(self) -> bool:
        """Whether the question has an answer that is not an error."""
        return self.result is not None and self.result.error is None

    def ask(self, client: Service) -> None:
        """Ask once; do nothing while the stream has no frames yet."""
        if self.query is not None:
            return
        try:
            self.query = client.ask(
                self.prompt,
                self.stream.id,
                since=self.since,
                until=self.until,
                max_frames=self.frames,
            )
        except StreamerError as error:
            if error.code is not ErrorCode.NO_FRAMES:
                raise

    @property
    def frames(self) -> int | None:
        """Maximum number of frames of a range: four, as in the training of the demo model."""
        return None if self.since is None else 4

    def summary(self) -> "Text":
        """Format question and answer as one line."""
        from rich.text import Text

        from streamer.terminal import answer_text, cost, time_of_day

        if self.result is None:
            return Text(f"{self.prompt}  (no answer)", "red")
        when = "now" if self.since is None else f"{self.since} to {self.until}"
        line = Text.assemble(
            (f"{self.stream.name}, {when} ({time_of_day(self.result.end)}): ", "dim"),
            f"{self.prompt} ",
            (answer_text(self.result), "bold green" if self.answered else "bold red"),
        )
        if self.truth is not None:
            line.append(f"  (the rendered sign says {self.truth})", "dim")
        return line.append(f"  {cost(self.result)}", "dim")
