"""Render conversations with a checkpoint's chat template, in the same sandbox as transformers.

A template is a program of the checkpoint. The sandbox gives it no way to files, to Python's
internals or to objects other than texts.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, NoReturn

from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

TemplateMessage = Mapping[str, str]


class ChatTemplate:
    """A compiled chat template; any number of threads may render with it.

    Args:
        text: the template, in Jinja.
        special_tokens: the named tokens that templates may write, e.g. "eos_token".

    Raises:
        jinja2.TemplateError: the template is malformed.
    """

    def __init__(self, text: str, special_tokens: Mapping[str, str]) -> None:
        self._template = _sandbox().from_string(text)
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[TemplateMessage], *, add_generation_prompt: bool) -> str:
        """Return the text of a conversation. Whatever the template raises passes through."""
        return self._template.render(
            # exact strings: those of a subclass would bring its methods into the sandbox
            messages=[{key: str.__str__(text) for key, text in m.items()} for m in messages],
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self._special_tokens,
        )


@cache
def _sandbox() -> ImmutableSandboxedEnvironment:
    """Return the environment of all templates, with the names that published templates use."""
    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    sandbox.filters["tojson"] = _to_json
    sandbox.globals.update(
        raise_exception=_refuse,
        strftime_now=lambda pattern: datetime.now().strftime(pattern),
        dict=_DictMaker(),
        namespace=_PublicNamespace,
    )
    return sandbox


class _Generation(Extension):
    """Renders `{% generation %}` blocks, which mark answers for training, as their content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> Node:
        """Read one block."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("content"), [], [], body).set_lineno(line)

    def content(self, caller: Macro) -> str:
        """Return what the block renders to."""
        return str(caller())


class _DictMaker:
    """The `dict` of templates: it makes dictionaries and has no other way into Python."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        """Return a dictionary with the same value for all keys."""
        return dict.fromkeys(keys, value)


class _PublicNamespace(Namespace):
    """The `namespace` of templates, without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # `self` is not named, so that a template may store a value of this name
        own, *values = args
        for name in dict(*values, **kwargs):
            _check_public(name)
        Namespace.__init__(own, *values, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        super().__setitem__(name, value)


def _check_public(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot store {name!r}: it begins with an underscore")


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Return `value` as JSON. Jinja's own filter escapes the characters of HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
