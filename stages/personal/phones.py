"""Telephone numbers, by Google's libphonenumber and its numbering plans."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from stillhouse.stages.personal.span import Span

REGIONS = {
    "arabic ar": "EG SA",
    "chinese zh": "CN TW",
    "dutch nl": "NL BE",
    "english en": "US GB",
    "french fr": "FR",
    "german de": "DE AT",
    "hindi hi": "IN",
    "italian it": "IT",
    "japanese ja": "JP",
    "korean ko": "KR",
    "polish pl": "PL",
    "portuguese pt": "BR PT",
    "russian ru": "RU",
    "spanish es": "ES MX",
    "turkish tr": "TR",
    "ukrainian uk": "UA",
    "vietnamese vi": "VN",
}
"""Whose numbers a text in this language may hold without their country code. Others are only known with it."""
_WORTH_A_LOOK = re.compile(r"\d(?:[\s\-–./()\[\]]{0,3}\d){6}")
_SURROUNDINGS = 30


def phones(text: str, language: str | None) -> Iterator[Span]:
    """Numbers that are assigned, in groups as their country writes them. One without country code or groups is more
    often an order's number: it must be a mobile one of eleven digits, or begin with 0."""
    import phonenumbers

    if _WORTH_A_LOOK.search(text) is None:
        return
    for region in _regions(language):
        matcher = phonenumbers.PhoneNumberMatcher(text, region, phonenumbers.Leniency.STRICT_GROUPING)
        for match in matcher:
            if _is_meant(match, phonenumbers):
                yield Span(match.start, match.end)


def _is_meant(match: Any, phonenumbers: Any) -> bool:
    written = match.raw_string
    if not written.isdecimal():
        return True
    is_mobile = phonenumbers.number_type(match.number) == phonenumbers.PhoneNumberType.MOBILE
    return is_mobile and (written.startswith("0") or len(written) == 11)


@cache
def _regions(language: str | None) -> list[str | None]:
    """Regions by a language's English name or its code, whatever follows that (pt-BR)."""
    name = re.split(r"[-_ (]", (language or "").lower())[0]
    for names, regions in REGIONS.items():
        if name in names.split():
            return [*regions.split()]
    return [None]
