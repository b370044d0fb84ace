"""The topics of an installation at a broker."""

import re
from dataclasses import dataclass

DISCOVERY = "homeassistant"
"""Home Assistant's prefix of discovery."""

BIRTH = f"{DISCOVERY}/status"
"""Where Home Assistant says `online` when it has started."""

MAX_TOPIC = 256
"""Characters of a topic that a caller may name for an answer."""

MAX_LEVELS = 64
"""Levels of such a topic."""


@dataclass(frozen=True)
class Topics:
    """The topics under one `prefix`: a stream's begin with its name."""

    prefix: str

    @property
    def status(self) -> str:
        """Whether the bridge serves: `online` or `offline`."""
        return f"{self.prefix}/status"

    @property
    def sweep(self) -> str:
        """Where the bridge publishes a mark to itself: it comes after what the broker keeps."""
        return f"{self.prefix}/sweep"

    @property
    def asks(self) -> str:
        """Filter of questions about any stream."""
        return f"{self.prefix}/+/ask"

    @property
    def commands(self) -> str:
        """Filter of the commands of all switches."""
        return f"{self.prefix}/+/watching/set"

    @property
    def kept(self) -> list[str]:
        """Filters of what the broker keeps of streams, pictures left out."""
        own = [f"{self.prefix}/+/{last}" for last in ("availability", "alerts/+", "answers/#")]
        return [f"{DISCOVERY}/+/+/+/config", *own]

    def of(self, stream: str, *rest: str) -> str:
        """Return a topic of the stream with this name."""
        return "/".join((self.prefix, stream, *rest))

    def stream_of(self, topic: str) -> str | None:
        """Return the stream's name in a topic; None for a topic of no stream."""
        name, _, rest = topic.removeprefix(f"{self.prefix}/").partition("/")
        return name if topic.startswith(f"{self.prefix}/") and rest else None

    def config(self, component: str, stream_id: str, entity: str) -> str:
        """Return the topic of an entity's configuration for Home Assistant."""
        return f"{DISCOVERY}/{component}/{self._node(stream_id)}/{entity}/config"

    def is_own_config(self, topic: str) -> bool:
        """Return whether a topic of discovery is one of this installation."""
        own = rf"{DISCOVERY}/\w+/{re.escape(self._node(''))}str_[0-9a-f]+/[\w-]+/config"
        return re.fullmatch(own, topic) is not None

    def may_answer(self, topic: str) -> bool:
        """Return whether an answer may be published to a topic that a caller names.

        The bridge's own topics and those of Home Assistant's discovery are commands. A broker ends
        the connection of a client whose topic has control characters or too many levels.
        """
        if not 0 < len(topic) <= MAX_TOPIC or topic.count("/") >= MAX_LEVELS:
            return False
        if not topic.isprintable() or re.search("[+#]", topic) or topic[0] == "$":
            return False
        if topic.startswith(f"{self.prefix}/"):
            return topic.split("/")[self.prefix.count("/") + 2 :][:1] == ["answer"]
        return not topic.startswith(f"{DISCOVERY}/")

    def _node(self, stream_id: str) -> str:
        return f"{self.prefix.replace('/', '_')}_{stream_id}"
