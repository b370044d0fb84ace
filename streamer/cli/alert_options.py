"""Options of `watch add` and `watch edit` that make an alert of a question."""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from streamer.cli.stream_options import with_options

if TYPE_CHECKING:
    from streamer.alert_rule import AlertRule


_SCHEDULE = re.compile(
    r"(?:(?P<days>[a-z,-]+) +)?(?P<start>\d\d:\d\d) *- *(?P<end>\d\d:\d\d)(?: +(?P<zone>\S+))?"
)


@dataclass(frozen=True, kw_only=True)
class AlertOptions:
    """Options as typed; None for those that were not given."""

    alert: Annotated[
        bool,
        typer.Option(
            "--alert", help="Answer with yes or no, and open an incident when it is yes for sure."
        ),
    ] = False
    severity: Annotated[
        Literal["info", "warning", "critical"] | None,
        typer.Option(help="Say how urgent an incident is. Default: warning."),
    ] = None
    raise_: Annotated[
        str | None,
        typer.Option(
            "--raise",
            metavar="P[,K,N]",
            help="Open an incident when K of the last N windows have at least the probability P. "
            "Default: 0.7,2,3.",
        ),
    ] = None
    clear: Annotated[
        str | None,
        typer.Option(
            metavar="P[,M]",
            help="End it when M windows in a row have at most the probability P. Default: 0.3,3.",
        ),
    ] = None
    cooldown: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=0,
            max=7 * 86400,
            help="Open the same incident again when it comes back within this time. Default: 60.",
        ),
    ] = None
    title: Annotated[
        str | None, typer.Option(help="Call its incidents this. Default: the question.")
    ] = None
    describe: Annotated[
        str | None,
        typer.Option(
            metavar="QUESTION",
            help="Ask this about a new incident, for its summary; no: ask nothing. Default: "
            "Describe the scene.",
        ),
    ] = None
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="[DAYS] FROM-TO [ZONE]",
            help="Open incidents in these hours only, such as '22:00-06:00' or 'mon-fri,sun "
            "08:00-18:00 Europe/Berlin'; always: at any time. Default zone: UTC.",
        ),
    ] = None
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="Give its incidents this label. Repeat for more labels."
        ),
    ] = None

    def rule(self) -> "AlertRule | None":
        """Return the rule that the options describe, with the fields that were given; None without
        any of them.

        Raises typer.BadParameter for text that cannot be read, StreamerError(INVALID_REQUEST) for
        a rule that cannot be.
        """
        from streamer.alert_rule import AlertRule
        from streamer.validation import validated

        given: dict[str, Any] = {
            "severity": self.severity,
            "raise": _numbers("--raise", self.raise_, "probability", "k", "n"),
            "clear": _numbers("--clear", self.clear, "probability", "m"),
            "cooldown": self.cooldown,
            "title": self.title,
            "describe": False if self.describe == "no" else self.describe,
            "labels": _labels(self.label) if self.label else None,
        }
        named = {name: value for name, value in given.items() if value is not None}
        if self.schedule is not None:
            named["schedule"] = _schedule(self.schedule)
        return validated(AlertRule, **named) if named or self.alert else None

    def require_alert(self) -> None:
        """Raise typer.BadParameter if an option of a rule was given without --alert."""
        if not self.alert and any(getattr(self, f.name) for f in fields(self)):
            raise typer.BadParameter("--raise, --severity and the like need --alert: add it.")


def with_alert_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameter `options` of `command` by one option per field of AlertOptions."""
    return with_options(AlertOptions, lambda typed: AlertOptions(**typed))(command)


def _numbers(option: str, text: str | None, *names: str) -> dict[str, float] | None:
    if text is None:
        return None
    try:
        parts = [float(part) for part in text.split(",")]
        if len(parts) not in (1, len(names)):
            raise ValueError
    except ValueError:
        raise typer.BadParameter(
            f"{option}: '{text[:60]}' cannot be read: write a probability, or "
            f"{','.join(names)}, such as {option} 0.7."
        ) from None
    return dict(zip(names, parts, strict=False))


def _schedule(text: str) -> dict[str, Any] | None:
    """Return the fields of the schedule that `text` describes; None for `always`."""
    from streamer.alert_rule import DAYS

    names = [str(day) for day in DAYS]
    if text.strip() == "always":
        return None
    found = _SCHEDULE.fullmatch(text.strip())
    if found is None:
        raise typer.BadParameter(
            f"--schedule: '{text[:60]}' cannot be read: write 22:00-06:00, mon-fri 08:00-18:00 or "
            "sat,sun 00:00-00:00 Europe/Berlin."
        )
    schedule: dict[str, Any] = {"from": found["start"], "to": found["end"]}
    if found["zone"]:
        schedule["timezone"] = found["zone"]
    if found["days"]:
        days: list[str] = []
        for part in found["days"].split(","):
            first, _, last = part.partition("-")
            unknown = next((day for day in (first, last or first) if day not in names), None)
            if unknown is not None:
                raise typer.BadParameter(
                    f"--schedule: '{unknown[:20]}' is not a day: write {', '.join(names)}."
                )
            begin, end = names.index(first), names.index(last or first)
            length = (end - begin) % len(names) + 1
            days += [names[(begin + number) % len(names)] for number in range(length)]
        schedule["days"] = list(dict.fromkeys(days))
    return schedule


def _labels(texts: list[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"--label: '{text[:60]}' has no '=': write NAME=VALUE.")
        found[name] = value
    return found
