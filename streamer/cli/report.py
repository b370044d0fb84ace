"""Report errors to users: one sentence on stderr, a traceback only with --debug, no password.

Exit codes: 0, the command did what it says; 1, it failed; 2, what was typed is not valid, so the
same command fails again; 130, it was ended with Ctrl-C before it was done.
"""

import sys
import traceback

from streamer.cli.context import options
from streamer.errors import ErrorCode, StreamerError

FAILED, NOT_VALID, INTERRUPTED = 1, 2, 130
_USAGE = {ErrorCode.INVALID_REQUEST, ErrorCode.PROMPT_EMPTY, ErrorCode.PROMPT_TOO_LONG}


def report(error: BaseException) -> int:
    """Print the error to stderr and return the exit code."""
    from streamer.media.urls import redact

    if options.debug:
        text = "".join(traceback.format_exception(error))
        print(redact(text), file=sys.stderr, end="")
    print(f"streamer: {redact(sentence(error))}", file=sys.stderr)
    usage = isinstance(error, StreamerError) and error.code in _USAGE
    return NOT_VALID if usage else FAILED


def sentence(error: BaseException) -> str:
    """Return the sentence that describes `error` to a user."""
    if isinstance(error, StreamerError):
        return error.message
    if type(error).__module__.startswith("redis."):
        from streamer.redis_client.errors import trouble_of

        return trouble_of(error).message
    cause = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    hint = "" if options.debug else " (run `streamer --debug ...` for the traceback)."
    return f"Unexpected error: {cause}{hint}"
