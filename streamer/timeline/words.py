"""Read what a user searches for: words, `"a phrase"`, and the beginning of a word, `park*`."""

import re
from dataclasses import dataclass

_TERMS = re.compile(r'"([^"]*)(?:"|$)|([^\s"]+)')
_WORD = re.compile(r"[^\W_]+")
# Thai, Lao, Myanmar, Khmer, Chinese, Japanese: written without spaces between words
_NO_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
)


@dataclass(frozen=True)
class Term:
    """Words that stand side by side; with `prefix`, the last one may go on."""

    words: tuple[str, ...]
    prefix: bool


def parse_search(text: str) -> list[Term]:
    """Return the terms of a search, all of which a result must contain.

    Any text is valid. It has no terms if it has no words (`%`), or if it is in a script without
    spaces: such a text is searched for as it stands.
    """
    if _NO_SPACES.search(text):
        return []
    terms = []
    for phrase, bare in _TERMS.findall(text):
        words = tuple(word.lower() for word in _WORD.findall(phrase or bare))
        if words:
            terms.append(Term(words, prefix=bare.endswith("*")))
    return terms


def matches(search: str, text: str) -> bool:
    """Return whether `text` has what `search` asks for, as the database decides it."""
    terms = parse_search(search)
    if not terms:
        return search.lower() in text.lower()
    words = [word.lower() for word in _WORD.findall(text)]
    return all(_contains(words, term) for term in terms)


def _contains(words: list[str], term: Term) -> bool:
    *first, last = term.words
    for start in range(len(words) - len(first)):
        found = words[start + len(first)]
        if words[start : start + len(first)] == first and (
            found.startswith(last) if term.prefix else found == last
        ):
            return True
    return False


def fts5(terms: list[Term]) -> str:
    """Return the terms as a query of SQLite's FTS5."""
    return " AND ".join(f'"{" ".join(term.words)}"{" *" if term.prefix else ""}' for term in terms)


def tsquery(terms: list[Term]) -> str:
    """Return the terms as a query of PostgreSQL's `to_tsquery`."""
    return " & ".join(
        "(" + " <-> ".join(f"'{word}'" for word in term.words) + (":*" if term.prefix else "") + ")"
        for term in terms
    )
