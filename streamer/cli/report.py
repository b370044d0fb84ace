"""Errors as users see them: one sentence on stderr, no traceback unless asked, no password."""

import sys
import traceback

from streamer.cli.context import options
from streamer.errors import StreamerError


def report(error: BaseException) -> int:
    """Print what went wrong and return the exit code."""
    from streamer.media.urls import redact

    if options.debug:
        text = "".join(traceback.format_exception(error))
        print(redact(text), file=sys.stderr, end="")
    print(f"streamer: {redact(sentence(error))}", file=sys.stderr)
    return 1


def sentence(error: BaseException) -> str:
    """What to tell a user about `error`."""
    from streamer.connections import FULL, is_full

    if isinstance(error, StreamerError):
        return error.message
    if is_full(error):
        return FULL
    if type(error).__module__.startswith("redis."):
        return "The connection to Redis was lost: see whether `streamer up` still runs."
    told = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    hint = "" if options.debug else " (`streamer --debug ...` shows where)."
    return f"This should not have happened: {told}{hint}"
