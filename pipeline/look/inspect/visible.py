"""Anybody's text as it can be printed: what a terminal would obey or hide is shown, not emitted."""

import unicodedata

_KEPT = {"\n", "\u200c", "\u200d"}  # the last two join and part letters of many scripts, and emoji
_SHOWN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def visible(text: object, *, one_line: bool = False) -> str:
    """`text` with control, format, unassigned and private characters as \\xNN, \\uNNNN or \\UNNNNNNNN; tabs as spaces;
    with `one_line` newlines as \\n."""
    found = "".join(
        character if character in _KEPT or unicodedata.category(character) not in _SHOWN else _escaped(character)
        for character in str(text).replace("\t", "    ")
    )
    return found.replace("\n", "\\n") if one_line else found


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
