"""Words in stored records of which a newer release may know more."""

from enum import StrEnum
from typing import Self


class OpenEnum(StrEnum):
    """A StrEnum that takes every text: a value that this release does not know keeps its text.

    For words that programs write and readers show. Not for words that a user writes, or that decide
    what a program does.
    """

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, str):
            return None
        word = str.__new__(cls, value)
        word._name_ = word._value_ = value
        return word
