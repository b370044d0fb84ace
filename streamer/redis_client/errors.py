"""Classify the errors of Redis: what each means, whether it will pass, and what to do about it."""

import re
from dataclasses import dataclass, replace

import redis
import redis.sentinel

from streamer.errors import ErrorCode, StreamerError

REDIS_FULL_MESSAGE = (
    "Redis is full: wait until jobs finish and answers expire, or raise its maxmemory."
)


@dataclass(frozen=True)
class RedisTrouble:
    """What is wrong with Redis.

    Attributes:
        kind: Redis's own word for it, such as `READONLY`; `AWAY` if there was no answer.
        code: the code for users.
        message: a sentence that names the cause and what to do.
        passes: whether Redis may take the refusal back, so that waiting helps. If not, the command
            itself is wrong.
        answered: whether a server answered, so that address and password are right.
        reconnect: whether a new connection may lead to a server that works: a failover moves the
            address, and connections that are open stay with the old primary.
    """

    kind: str
    code: ErrorCode
    message: str
    passes: bool = True
    answered: bool = True
    reconnect: bool = False

    @property
    def error(self) -> StreamerError:
        """The trouble as an error for users."""
        return StreamerError(self.code, self.message)


def _refusal(kind: str, message: str, *, reconnect: bool = False) -> RedisTrouble:
    return RedisTrouble(kind, ErrorCode.REDIS_UNAVAILABLE, message, reconnect=reconnect)


_FULL = RedisTrouble("OOM", ErrorCode.REDIS_FULL, REDIS_FULL_MESSAGE)

_CLUSTER = (
    "Redis runs in cluster mode, which is not supported: name a server without cluster-enabled "
    "(for high availability, one behind Sentinel)."
)

# Scripts and transactions wrap the word of an error in a text of their own, which differs by
# version, so the words are searched. The first that is found counts.
_REFUSALS = tuple(
    (re.compile(pattern), trouble)
    for pattern, trouble in (
        (r"\bOOM\b|when used memory > 'maxmemory'", _FULL),
        (
            r"\bREADONLY\b|read.only replica|previous master is now a slave",
            _refusal(
                "READONLY",
                "Redis is a read-only replica: wait until a failover has ended, or let the address "
                "name the primary.",
                reconnect=True,
            ),
        ),
        (
            r"\bUNBLOCKED\b",
            _refusal(
                "UNBLOCKED",
                "Redis has just become a replica: wait until the failover has ended.",
                reconnect=True,
            ),
        ),
        (
            r"\bMISCONF\b",
            _refusal(
                "MISCONF",
                "Redis cannot save its data and refuses to write: make room on its disk, or see "
                "its log.",
            ),
        ),
        (
            r"\bNOREPLICAS\b",
            _refusal(
                "NOREPLICAS",
                "Redis refuses to write because too few replicas are connected: start them, or "
                "lower its min-replicas-to-write.",
            ),
        ),
        (
            r"\bNOPERM\b|ACL failure|can't run this command|no permissions",
            _refusal(
                "NOPERM",
                "The Redis user lacks a right ({detail}): extend its ACL as `streamer doctor` "
                "says.",
            ),
        ),
        (
            r"\bLOADING\b|is loading the dataset",
            _refusal("LOADING", "Redis is loading its data: wait until it has finished."),
        ),
        (
            r"\bMASTERDOWN\b|Link with (?:MASTER|PRIMARY) is down",
            _refusal(
                "MASTERDOWN",
                "Redis is a replica that has lost its primary: wait for the failover, or start the "
                "primary.",
                reconnect=True,
            ),
        ),
        (
            r"\bCLUSTERDOWN\b",
            _refusal("CLUSTERDOWN", "The Redis cluster is down: see `CLUSTER INFO` on its nodes."),
        ),
        (r"\bTRYAGAIN\b", _refusal("TRYAGAIN", "The Redis cluster is moving keys: wait.")),
        (r"\b(?:MOVED|ASK|CROSSSLOT)\b", _refusal("CLUSTER", _CLUSTER)),
        (
            r"\bBUSY\b(?! Consumer)|busy running a",
            _refusal(
                "BUSY",
                "Redis is busy with a script of another program: wait, or end it with "
                "`SCRIPT KILL`.",
            ),
        ),
        (
            r"max number of clients|maxclients",
            _refusal(
                "MAXCLIENTS",
                "Redis has no connection left: close some, or raise its maxclients.",
            ),
        ),
    )
)

_FOR_NOW = re.compile(
    r"quota|limit exceeded|too many|try again|temporar|maintenance|shutting down", re.IGNORECASE
)
_CODE = re.compile(r"[A-Z][A-Z0-9_]{2,}\b")
_BUGS = frozenset(
    ("ERR", "WRONGTYPE", "NOSCRIPT", "NOGROUP", "BUSYGROUP", "BUSYKEY", "EXECABORT", "NOPROTO")
)
"""First words of errors that waiting does not cure."""

_MAX_DETAIL = 120

_LOGIN = RedisTrouble(
    "LOGIN",
    ErrorCode.REDIS_UNAVAILABLE,
    "Redis refused the password: check STREAMER_REDIS_URL.",
    answered=False,
)
_FORGOT = _refusal("NOSCRIPT", "Redis has just restarted and knows no script: it is sent again.")
_SILENT = RedisTrouble(
    "SILENT",
    ErrorCode.REDIS_UNAVAILABLE,
    "Redis does not answer in time: check that it runs, and the network to it.",
    answered=False,
)
_AWAY = RedisTrouble(
    "AWAY",
    ErrorCode.REDIS_UNAVAILABLE,
    "The connection to Redis was lost: check that it runs, and the network to it.",
    answered=False,
)
_NO_PRIMARY = _refusal(
    "NOPRIMARY",
    "Sentinel names no primary: wait until a failover has ended, or check its quorum and the "
    "service name in the address.",
)


def trouble_of(error: BaseException) -> RedisTrouble:
    """Classify an error that redis-py raised."""
    kinds = redis.exceptions
    if isinstance(error, kinds.AuthenticationError | kinds.AuthorizationError):
        return _LOGIN
    if isinstance(error, redis.sentinel.MasterNotFoundError):
        return _NO_PRIMARY
    if isinstance(error, kinds.OutOfMemoryError):  # also our own, with a text of ours
        return _FULL
    if isinstance(error, kinds.NoScriptError):  # it restarted again after a script was sent
        return _FORGOT
    if isinstance(error, kinds.TimeoutError | TimeoutError):
        return _SILENT
    code = getattr(error, "status_code", None)
    text = f"{code} {_said(error)}" if code else _said(error)
    if isinstance(error, kinds.ResponseError | kinds.ConnectionError):
        for pattern, trouble in _REFUSALS:
            if pattern.search(text):
                return replace(trouble, message=trouble.message.replace("{detail}", _detail(error)))
    if isinstance(error, kinds.ConnectionError | kinds.InvalidResponse | OSError):
        return _AWAY
    if isinstance(error, kinds.ResponseError) and _is_for_now(text):
        return _refusal(
            "REFUSED", f"Redis refuses work ({_detail(error)}): see its log, or ask its operator."
        )
    return RedisTrouble(
        "BUG",
        ErrorCode.REDIS_UNAVAILABLE,
        f"Redis does not accept a command ({type(error).__name__}): see the log, and report it.",
        passes=False,
    )


def _is_for_now(text: str) -> bool:
    """Return whether an unknown error is a state of the server rather than a wrong command."""
    word = _CODE.match(text)
    return (word is not None and word[0] not in _BUGS) or bool(_FOR_NOW.search(text))


def _said(error: BaseException) -> str:
    """Return the server's own words: redis-py puts the command before them in a pipeline."""
    return str(error).rpartition(" of pipeline caused error: ")[2]


def _detail(error: BaseException) -> str:
    return _said(error).partition(" script: ")[0].strip().rstrip(".")[:_MAX_DETAIL]


def will_pass(error: BaseException) -> bool:
    """Return whether Redis may take an error back, so that the same command works later."""
    return trouble_of(error).passes


def is_full(error: BaseException) -> bool:
    """Return whether a command failed because the server has reached its `maxmemory`."""
    return isinstance(error, redis.exceptions.RedisError) and trouble_of(error).kind == "OOM"
