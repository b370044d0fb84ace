"""Define how frames are sampled from a stream."""

from typing import Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from streamer.domain.record import Record


def _describe_modes(schema: dict[str, Any]) -> None:
    """Say in the JSON schema which fields go with a mode of :class:`Sampling`."""
    if "properties" not in schema:  # of what is returned
        return
    fields = set().union(*_SAMPLING.values())
    schema["anyOf"] = [
        {
            "properties": {"mode": {"const": mode}}
            | {name: {"type": "null"} for name in sorted(fields - own.keys())},
            **({} if mode == "fps" else {"required": ["mode"]}),
        }
        for mode, own in _SAMPLING.items()
    ]


class Sampling(Record):
    """How frames are sampled from a stream. Each mode has its own fields; the others are None.

    `fps`: that many frames per second. `keyframes`: key frames, at most one every `min_interval`
    seconds; nothing else is decoded. `change`: frames that differ by `threshold` from the last
    sampled one, at most one every `min_interval` seconds and at least one every `max_interval`.
    """

    model_config = Record.model_config | {"json_schema_extra": _describe_modes}

    mode: Literal["fps", "keyframes", "change"] = "fps"
    fps: float | None = Field(
        default=None, gt=0, le=60, description="sampled frames per stream second; default 1"
    )
    threshold: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="difference that counts as a change, 0 to 1; default 0.1",
    )
    min_interval: float | None = Field(
        default=None, ge=0.01, le=3600, description="minimum seconds between frames; default 0.2"
    )
    max_interval: float | None = Field(
        default=None, gt=0, le=3600, description="maximum seconds between frames; default 10"
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        """Fill in the defaults of the mode, and reject fields of other modes."""
        own = _SAMPLING[self.mode]
        for name in type(self).model_fields:
            if name == "mode" or getattr(self, name) is not None:
                continue
            if name in own:
                # bypasses the validation of assignments, which would call this validator again
                self.__dict__[name] = own[name]
        for name in sorted(type(self).model_fields.keys() - own.keys() - {"mode"}):
            if getattr(self, name) is not None:
                takes = " and ".join(own) if len(own) < 3 else ", ".join(own)
                raise PydanticCustomError(
                    "sampling",
                    "'{name}' does not go with the sampling mode '{mode}', which takes {takes}",
                    {"name": name, "mode": self.mode, "takes": takes},
                )
        shortest, longest = self.min_interval, self.max_interval
        if shortest is not None and longest is not None and longest < shortest:
            raise PydanticCustomError(
                "sampling",
                "'max_interval' ({longest} s) is shorter than 'min_interval' ({shortest} s)",
                {"longest": f"{longest:g}", "shortest": f"{shortest:g}"},
            )
        return self

    @model_serializer(mode="wrap")
    def _own_fields(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}

    @property
    def max_fps(self) -> float:
        """Upper bound of the sampled frames per second."""
        return self.fps if self.fps is not None else 1.0 / (self.min_interval or 1.0)


_SAMPLING: dict[str, dict[str, float]] = {
    "fps": {"fps": 1.0},
    "keyframes": {"min_interval": 0.2},
    "change": {"threshold": 0.1, "min_interval": 0.2, "max_interval": 10.0},
}
