"""Street addresses of the United States and the United Kingdom, by pyap2; no library knows others without a model."""

import re
from collections.abc import Iterator

from stillhouse.stages.personal.span import Span

_ENDS = {
    "US": re.compile(r"\b[A-Z]{2},? [0-9]{5}(?:-[0-9]{4})?\b"),
    "GB": re.compile(r"\b[A-Z]{1,2}[0-9][A-Z0-9]? ?[0-9][A-Z]{2}\b"),
}
"""How an address ends. pyap2 reads a megabyte in five seconds, so it is shown nothing else but the text before."""
_WINDOW = 120


def streets(text: str) -> Iterator[Span]:
    """Addresses with number, street, town and postal code."""
    for country, pattern in _ENDS.items():
        for match in pattern.finditer(text):
            import pyap

            # A space before the address counts as its own there.
            start = max(0, match.start() - _WINDOW)
            window = text[start : match.end()]
            for address in pyap.parse(window, country=country):
                if address.match_end == len(window):
                    written = window[address.match_start :].lstrip(" ,\n")
                    yield Span(match.end() - len(written), match.end())
