"""Numbers that belong to a person: cards, accounts, national ids. Each candidate is judged by its check digits.

Which forms are looked for is declared below as shapes: 9 is a digit, A a capital letter, anything else itself. A number
whose check digits are weak (every tenth number passes) is only known by the separators that it is written with.
"""

import importlib
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from typing import Any

import stdnum.iban
import stdnum.luhn
from stdnum.exceptions import ValidationError

from stillhouse.stages.personal.span import Span

IDS = {
    "be.nn": ["99.99.99-999.99"],
    "br.cpf": ["999.999.999-99", "99999999999"],
    "ca.sin": ["999-999-999"],
    "ch.ssn": ["999.9999.9999.99"],
    "cl.rut": ["99.999.999-9", "9.999.999-9", "99.999.999-K", "9.999.999-K"],
    "cn.ric": ["999999999999999999", "99999999999999999X"],
    "cz.rc": ["999999/9999"],
    "de.idnr": ["99 999 999 999"],
    "es.dni": ["99999999A", "99999999-A"],
    "es.nie": ["A9999999A", "A-9999999-A"],
    "fi.hetu": ["999999-999A", "999999-9999", "999999A9999", "999999A999A"],
    "fr.nir": ["9 99 99 99 999 999 99", "9 99 99 99 999 999", "999999999999999"],
    "in_.aadhaar": ["9999 9999 9999"],
    "in_.pan": ["AAAAA9999A"],
    "it.codicefiscale": ["AAAAAA99A99A999A"],
    "jp.in_": ["9999 9999 9999"],
    "kr.rrn": ["999999-9999999"],
    "mx.curp": ["AAAA999999AAAAAAA9", "AAAA999999AAAAAA99"],
    "no.fodselsnummer": ["99999999999", "999999 99999"],
    "pt.cc": ["99999999 9 AA9", "999999999AA9"],
    "ru.inn": ["999999999999"],
    "se.personnummer": ["999999-9999", "99999999-9999"],
    "tr.tckimlik": ["99999999999"],
    "us.ssn": ["999-99-9999"],
}
"""Modules of python-stdnum, and how their numbers are written."""

# What comes before a number or after it and makes it a part of something longer.
_BEFORE, _AFTER = r"(?<![\w./\-])(?<!\d )", r"(?![\w/\-]|[.,:]\w| \d)"
_CARD = re.compile(
    _BEFORE + r"[2-6](?:[0-9]{13,18}|[0-9]{3}(?:[ -][0-9]{4}){3}|[0-9]{3}[ -][0-9]{6}[ -][0-9]{4,5})" + _AFTER,
    re.ASCII,
)
_ISSUERS = re.compile(
    r"4(?:\d{15}|\d{18})|(?:5[1-5]|2[2-7])\d{14}|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}|35\d{14}"
    r"|(?:6011|64[4-9]\d|65\d\d)\d{12}|62\d{14,17}|(?:50|5[6-8]|6[0-9])\d{14}"
)
"""Prefixes and lengths of Visa, Mastercard, American Express, Diners Club, JCB, Discover, UnionPay and Maestro (ISO/IEC
7812)."""
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{2,4}){3,8}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")
_CLASSES = {"9": "[0-9]", "A": "[A-Z]"}


def cards(text: str) -> Iterator[Span]:
    """Payment cards by issuer and Luhn's check digit, in one piece or in the groups that are printed on them."""
    for match in _CARD.finditer(text):
        number = re.sub("[ -]", "", match[0])
        if _ISSUERS.fullmatch(number) and len(set(number)) > 1 and stdnum.luhn.is_valid(number):
            yield Span(*match.span())


def ibans(text: str) -> Iterator[Span]:
    """Account numbers by ISO 13616: country, its length and structure, and the two check digits."""
    for match in _IBAN.finditer(text):
        groups = match[0].split(" ")
        # Words in capitals after it may look like groups of it.
        for end in range(len(groups), 0, -1):
            written = " ".join(groups[:end])
            if _is_valid("iban", written):
                yield Span(match.start(), match.start() + len(written))
                break


def national_ids(text: str) -> Iterator[Span]:
    """Numbers of persons in `IDS`."""
    pattern, modules_of = _shapes()
    for match in pattern.finditer(text):
        if any(_is_valid(name, match[0]) for name in modules_of[_shape(match[0])]):
            yield Span(*match.span())


@cache
def _shapes() -> tuple[re.Pattern[str], dict[str, list[str]]]:
    """A pattern for all shapes, and the modules that may know a number of each shape."""
    modules_of: dict[str, list[str]] = defaultdict(list)
    for name, shapes in IDS.items():
        for shape in shapes:
            modules_of[_shape(shape)].append(name)
    # The longest first: a shorter one may be its beginning.
    patterns = ["".join(_CLASSES.get(c, re.escape(c)) for c in s) for s in sorted(modules_of, key=len, reverse=True)]
    return re.compile(f"{_BEFORE}(?:{'|'.join(patterns)}){_AFTER}", re.ASCII), dict(modules_of)


def _shape(written: str) -> str:
    return re.sub("[A-Z]", "A", re.sub("[0-9]", "9", written))


@cache
def _module(name: str) -> Any:
    return importlib.import_module(f"stdnum.{name}")


def _is_valid(name: str, written: str) -> bool:
    try:
        _module(name).validate(written)
    except ValidationError:
        return False
    return True
