"""The errors of nvila_core. Each message is one sentence that names the cause and what to do."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class NVILAError(Exception):
    """Base class of all errors that nvila_core raises."""


class CheckpointError(NVILAError):
    """A checkpoint cannot be loaded.

    The message names the file and, where known, the field, the expected and the found value.
    """

    def __init__(
        self,
        file: object,
        problem: str,
        *,
        field: str | None = None,
        expected: object = None,
        found: object = None,
    ) -> None:
        self.file, self.field = str(file), field
        self.expected, self.found = expected, found
        where = f"{self.file}, {field}" if field else self.file
        facts = []
        if expected is not None:
            facts.append(f"expected {expected}")
        if found is not None:
            facts.append(f"found {shorten(found)}")
        super().__init__(f"{where}: {problem}" + (f" ({', '.join(facts)})" if facts else ""))


class PromptError(NVILAError):
    """The prompt's text, media or options cannot be used."""


class EmptyPrompt(PromptError):  # noqa: N818
    """The prompt holds neither text nor a picture."""


class PromptTooLong(PromptError):  # noqa: N818
    """The prompt needs more positions than the context holds.

    Attributes:
        prompt_tokens: positions that the prompt needs; an estimate where only its characters were
            counted.
        max_model_len: maximum number of positions of prompt and answer together.
    """

    def __init__(
        self, prompt_tokens: int, max_model_len: int, *, characters: int | None = None
    ) -> None:
        self.prompt_tokens, self.max_model_len = prompt_tokens, max_model_len
        needs = f"needs {prompt_tokens} positions"
        if characters is not None:
            needs = f"has {characters} characters, which need at least {prompt_tokens} positions,"
        super().__init__(
            f"The prompt {needs} but the model's context holds {max_model_len}, so use fewer or "
            "smaller pictures or a shorter text."
        )

    @property
    def context(self) -> int:
        """Deprecated name of `max_model_len`."""
        warnings.warn(
            "PromptTooLong.context is now PromptTooLong.max_model_len; the old name will be "
            "removed in the next release.",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.max_model_len


class MediaError(PromptError):
    """An image or a video cannot be read."""


class MediaWarning(UserWarning):
    """A picture is used in another way than its file stores it; the message says how and why."""


class EngineStopped(NVILAError):  # noqa: N818
    """The engine was stopped, or failed, before the request was finished."""

    def __init__(self, reason: str = "was stopped") -> None:
        self.reason = f"the engine {reason}"
        super().__init__(
            f"The engine {reason} before the answer was finished; start it and submit again."
        )


class DeviceLost(EngineStopped):
    """The accelerator's context is broken: only a new process can use the device again."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"lost its device ({reason})")


class DeadlineExceeded(NVILAError):  # noqa: N818
    """The request was not finished by its deadline."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"There was no answer within {seconds:g} s, so ask about less or allow more time."
        )


class QueueFull(NVILAError):  # noqa: N818
    """The engine has as many waiting requests as it may."""

    def __init__(self, max_waiting: int) -> None:
        super().__init__(
            f"The engine has {max_waiting} requests waiting, as many as max_waiting allows: "
            "submit again when some are answered, or raise max_waiting."
        )


class NotFinite(NVILAError):  # noqa: N818
    """What the model computed for a request is NaN or infinite."""

    def __init__(self, what: str = "logits") -> None:
        super().__init__(
            f"The model's {what} are not numbers for this request: its picture or the weights are "
            "damaged, or the dtype's range is too small (try bfloat16 or float32)."
        )


@contextmanager
def as_checkpoint_error(file: object, problem: str, field: str | None = None) -> Iterator[None]:
    """Convert any exception of a library that reads `file` into a CheckpointError.

    This includes BaseException, which panics of Rust libraries raise; interrupts and exits pass.
    """
    try:
        yield
    except (NVILAError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        raise CheckpointError(file, f"{problem}: {first_line(error)}", field=field) from error


LONE_SURROGATE = (
    "The text holds half of a character (a lone surrogate): remove it, or send the text as UTF-8."
)


def is_unicode(text: str) -> bool:
    """Return whether a text can be written as UTF-8: it has no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its type's name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def shorten(value: object, limit: int = 120) -> str:
    """Return `value` as text of at most `limit` characters, for an error message."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
