"""Every error this package raises on purpose. Each message is one sentence that says what to do."""

from collections.abc import Iterator
from contextlib import contextmanager


class NVILAError(Exception):
    """Base of all errors that nvila_core raises on purpose."""


class CheckpointError(NVILAError):
    """A checkpoint cannot be loaded; names the file, the field, what was expected and what was
    found.
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
    """The prompt (its text, media or options) cannot be used as given."""


class EmptyPrompt(PromptError):  # noqa: N818
    """The prompt holds neither text nor a picture."""


class PromptTooLong(PromptError):  # noqa: N818
    """The prompt needs more positions than the model's context holds."""

    def __init__(self, prompt_tokens: int, context: int) -> None:
        self.prompt_tokens, self.context = prompt_tokens, context
        super().__init__(
            f"The prompt needs {prompt_tokens} positions but the model's context holds {context}, "
            "so use fewer or smaller pictures or a shorter text."
        )


class MediaError(PromptError):
    """An image or a video cannot be read."""


class EngineStopped(NVILAError):  # noqa: N818
    """The engine was stopped, or could not go on, before the request was done."""

    def __init__(self, reason: str = "was stopped") -> None:
        self.reason = f"the engine {reason}"
        super().__init__(
            f"The engine {reason} before the answer was finished; start it and submit again."
        )


class DeviceLost(EngineStopped):
    """The accelerator's context is broken: nothing in this process can use it any more."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"lost its device ({reason})")


class DeadlineExceeded(NVILAError):  # noqa: N818
    """A request was not done when its deadline came."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"There was no answer within {seconds:g} s, so ask about less, or allow more time."
        )


class NotFinite(NVILAError):  # noqa: N818
    """The model gave no numbers for a request."""

    def __init__(self) -> None:
        super().__init__(
            "The model's scores are not numbers for this request: its picture or the weights are "
            "broken, or the dtype's range is too small (try bfloat16 or float32)."
        )


@contextmanager
def as_checkpoint_error(file: object, problem: str, field: str | None = None) -> Iterator[None]:
    """Turn whatever a library raises over a file into a CheckpointError about that file.

    Also BaseException, because the Rust libraries panic with one; interrupts and exits pass.
    """
    try:
        yield
    except (NVILAError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        raise CheckpointError(file, f"{problem}: {first_line(error)}", field=field) from error


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def shorten(value: object, limit: int = 120) -> str:
    """`value` as text of at most `limit` characters, for an error message."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
