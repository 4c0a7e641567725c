"""How many tokens a text can have at most, told from its bytes: most prompts are far from any limit, and counting their
tokens costs more than everything else that ingest does.

The proof, for byte-pair models as tokenizer.json describes them. Added tokens are cut out first; each is one token.
What is between them is normalised, cut into words, and every word starts as characters, at the byte level as one for
each byte. A character is one token, or unknown, or lost, or by fallback one token for each of its bytes. Merges only
make tokens fewer. So there are at most as many tokens as bytes after normalisation. NFC makes at most three bytes of
one (Unicode FAQ, "Normalization"), and none more of ASCII. A space that becomes "▁" and a byte's character stay one
token: where there is a fallback, they have to be in the vocabulary. A "▁" or space that is put before a text between
added tokens is one more for each: one in all where every added token takes the place of two characters or more,
otherwise one for each byte.
Whatever is not named here has no bound.
"""

from typing import Any, NamedTuple

_SPACE = "▁"
_CUTTERS = {"Split", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit"}
"""Pre-tokenizers that take a text apart and add nothing."""


class Bound(NamedTuple):
    """Tokens of a text: at most these for each byte of UTF-8, and `more`."""

    per_ascii_byte: int
    per_byte: int
    more: int

    def most_tokens(self, text: str) -> int:
        if text.isascii():
            return self.per_ascii_byte * len(text) + self.more
        return self.per_byte * len(text.encode()) + self.more


def bound_of(spec: dict[str, Any]) -> Bound | None:
    """The bound of a tokenizer.json, post-processor and truncation left out; None where none is known."""
    model = spec["model"]
    if model.get("type") != "BPE" or model.get("dropout"):
        return None
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return None
    normalizers = _parts(spec.get("normalizer"), "normalizers")
    cutters = _parts(spec.get("pre_tokenizer"), "pretokenizers")
    kinds = [part["type"] for part in normalizers + cutters]
    has_bytes = kinds.count("ByteLevel") == 1
    has_spaces = any(kind in ("Replace", "Prepend", "Metaspace") for kind in kinds)
    if not all(map(_is_known_normalizer, normalizers)) or (has_bytes and has_spaces):
        return None
    puts_before = any(part["type"] == "Prepend" for part in normalizers)
    for i, part in enumerate(cutters):
        adds = part.get("add_prefix_space", part.get("prepend_scheme", "never") != "never")
        if part["type"] == "Metaspace" and part.get("replacement") != _SPACE:
            return None
        if part["type"] in ("ByteLevel", "Metaspace"):
            if kinds.count(part["type"]) > 1 or (adds and i > 0):  # then before every word
                return None
            puts_before |= bool(adds)
        elif part["type"] not in _CUTTERS:
            return None
    added = [token["content"] for token in spec["added_tokens"] if token["content"]]
    needed = {_SPACE} if has_spaces else set(_alphabet()) if has_bytes else set()
    if model.get("byte_fallback") and not (needed <= model["vocab"].keys() and needed.isdisjoint(added)):
        return None
    has_nfc = "NFC" in kinds
    if not puts_before:
        return Bound(1, 3 if has_nfc else 1, 0)
    per_byte = 1 if all(len(text) > 1 for text in added) else 2
    return None if has_nfc else Bound(per_byte, per_byte, 2)


def _parts(part: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The members of a sequence, or the only one."""
    if part is None:
        return []
    return [inner for item in part[name] for inner in _parts(item, name)] if part["type"] == "Sequence" else [part]


def _is_known_normalizer(part: dict[str, Any]) -> bool:
    if part["type"] == "Replace":
        return bool(part["pattern"] == {"String": " "} and part["content"] == _SPACE)
    return bool(part["type"] == "NFC" or (part["type"] == "Prepend" and part["prepend"] == _SPACE))


def _alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return list(ByteLevel.alphabet())
