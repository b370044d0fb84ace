"""What answers clips: an engine in this process, or a server elsewhere, behind one protocol."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from nvila_core.resolution.grids import SINGLE_TILE
from nvila_core.resolution.policy import Budget, GridChoice, Measures, Native, Plan, TilingConfig
from streamer.domain.conversation import Detail
from streamer.domain.request import ClipRequest

if TYPE_CHECKING:
    from nvila_core import Completion


class Backend(Protocol):
    """The model of a worker. All slots of the worker share it."""

    def plan(
        self, frames: Sequence[Measures], budget: Budget, details: Sequence[Detail] | None = None
    ) -> Plan:
        """Plan the tiles of a clip with the worker's policy, from the measures of its frames.

        `details` say how closely to look at each of them; None: at all as the policy decides.
        """
        ...

    def waiting(self) -> float:
        """Return how many requests wait for the model, for each that it runs at once."""
        ...

    def answer(self, clip: ClipRequest, jpegs: Sequence[bytes], plan: Plan) -> "Completion":
        """Answer a clip about its frames, given as stored, shown as planned. A `ChatRequest` is a
        clip whose prompt is a conversation.

        Raises:
            StreamerError: this request failed, without harm to others.
            GiveBack: another worker should answer it, or no answer is wanted.
            BrokeDown: the model broke down while it worked on this request.
        """
        ...

    def stats(self) -> Mapping[str, float | str]:
        """Return what the worker reports with each heartbeat."""
        ...


def plan_by_details(
    frames: Sequence[Measures],
    details: Sequence[Detail] | None,
    tiling: TilingConfig,
    plan: Callable[[list[Measures]], Plan],
) -> Plan:
    """Plan frames as their details say; `plan` plans those of detail `auto`."""
    if details is None or set(details) <= {"auto"}:
        return plan(list(frames))
    detailed = list(zip(frames, details, strict=True))
    free = [frame for frame, detail in detailed if detail == "auto"]
    planned = iter(plan(free).frames if free else ())
    chosen = [
        next(planned) if detail == "auto" else _by_detail(frame, detail, tiling)
        for frame, detail in detailed
    ]
    return Plan.of(chosen, tiling)


def _by_detail(frame: Measures, detail: Detail, tiling: TilingConfig) -> GridChoice:
    """Return one tile for `low`, and for `high` those of the published rule for a single frame."""
    if detail == "low":
        return GridChoice(SINGLE_TILE, "detail: low")
    (alone,) = Native().plan([frame], tiling).frames
    return GridChoice(alone.grid, "detail: high")
