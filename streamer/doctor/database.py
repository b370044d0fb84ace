"""Check that the database of the timeline answers."""

from collections.abc import Iterable

from streamer.doctor.check import Check, check
from streamer.errors import StreamerError
from streamer.redis_client.connections import from_run_file
from streamer.settings import Settings


def database(settings: Settings) -> Iterable[Check]:
    """Ask the timeline's database for its results, and change nothing in it."""
    from streamer.timeline.results import count_results

    try:
        url = settings.database_url or from_run_file(settings, "database_url")
    except StreamerError:
        url = None  # nothing runs here
    try:
        results = count_results(url or settings.timeline_url)
    except StreamerError as error:
        yield check("database", "fail", error.message)
        return
    if results is None:
        yield check("database", "ok", "It is empty: the recorder makes its table when it starts.")
    else:
        yield check("database", "ok", f"It answers and holds {results} results.")
