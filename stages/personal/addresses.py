"""Addresses of the net: e-mail, IP and MAC. Each candidate is judged by a library that knows the rules."""

import ipaddress
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import email_validator
import stdnum.mac
from stdnum.exceptions import ValidationError

from stillhouse.stages.personal.span import Span

# Latin letters alone: Chinese and Japanese have no space between an address and the words around it.
_MAIL = re.compile(r"[A-Za-z0-9À-ɏ._%+-]{1,64}@[A-Za-z0-9À-ɏ-]+(?:\.[A-Za-z0-9À-ɏ-]+)+")
_EXAMPLES = re.compile(r"(?:^|[@.])example\.(?:com|net|org|edu)$")
"""RFC 2606 keeps them for documentation."""
_IN_URL = re.compile(r"://[^\s/]*$")
_IP4 = re.compile(r"(?<![\w.\-])(?<![A-Za-z]/)(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![\w\-]|\.[\w])", re.ASCII)
_IP6 = re.compile(r"(?<![\w:.])[23][0-9a-f]{3}:[0-9a-f:]{2,34}(?![\w:]|\.[\w])", re.ASCII | re.IGNORECASE)
_MAC = re.compile(r"(?<![0-9a-z:\-])(?:[0-9a-f]{2}([:\-]))(?:[0-9a-f]{2}\1){4}[0-9a-f]{2}(?![0-9a-z:\-])", re.I)
_SMALL = 32


@cache
def _suffixes() -> Any:
    from publicsuffixlist import PublicSuffixList

    return PublicSuffixList(accept_unknown=False)


def emails(text: str) -> Iterator[Span]:
    """Addresses that RFC 5322 allows, under a suffix of the Public Suffix List (image@2x.png is a file). Not those of
    documentation, of git over SSH (git@github.com:…), nor user names in URLs."""
    if "@" not in text:
        return
    for match in _MAIL.finditer(text):
        written = match[0].strip(".-")
        start = match.start() + match[0].index(written)
        end = start + len(written)
        is_git = text[end : end + 1] == ":" and text[end + 1 : end + 2].strip() != ""
        if is_git or _EXAMPLES.search(written.lower()) or _IN_URL.search(text[max(0, start - 100) : start]):
            continue
        try:
            found = email_validator.validate_email(written, check_deliverability=False)
        except email_validator.EmailNotValidError:
            continue
        if _suffixes().publicsuffix(found.ascii_domain) is not None:
            yield Span(start, end)


def ips(text: str) -> Iterator[Span]:
    """Addresses that are somebody's on the net: neither private, reserved nor kept for documentation. Four numbers
    below 32 are a version (1.2.3.4) or a public resolver (8.8.8.8); one that ends in .0 names a network."""
    if text.count(".") >= 3:
        for match in _IP4.finditer(text):
            numbers = [int(part) for part in match[0].split(".")]
            if numbers[3] and max(numbers) >= _SMALL and _is_global(match[0]):
                yield Span(*match.span())
    if text.count(":") >= 2:
        for match in _IP6.finditer(text):
            if _is_global(match[0]):
                yield Span(*match.span())


def _is_global(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return found.is_global and not found.is_multicast


def macs(text: str) -> Iterator[Span]:
    """Hardware addresses, six pairs of hexadecimal digits; not the broadcast address nor one of zeros."""
    for match in _MAC.finditer(text):
        try:
            number = stdnum.mac.validate(match[0])
        except ValidationError:
            continue
        if len(set(number.replace(":", ""))) > 1 and not stdnum.mac.is_multicast(number):
            yield Span(*match.span())
