"""What a text says, apart from how it was typed: two texts with one reading are one question.

Case-folding and NFKC find texts that are alike, they do not make texts equal: 2³ is not 23, print(A) is not print(a). A
reading leaves out only what cannot carry meaning where it stands. In doubt it keeps, because a question asked twice
costs less than one that is never asked. docs/duplicates.md has a table of what is left out and what is kept.
"""

import re
import unicodedata

# Letters of scripts written without spaces between words: Thai, Lao, Myanmar, Khmer, Han, kana, bopomofo.
UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3041-\u30ff\u3105-\u312f"
    r"\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua9e0-\ua9ff\uaa60-\uaa7f\uf900-\ufaff"
    r"\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
# Ends of sentences and clauses: Latin, Greek, Armenian, Hebrew, Arabic, Devanagari, Myanmar, Ethiopic, Khmer, Han.
ENDS = (
    r".,;:!?\u037e\u0589\u055c-\u055e\u05c3\u060c\u061b\u061f\u06d4\u0964\u0965\u104a\u104b\u1362-\u1368\u17d4\u17d5"
    r"\u3001\u3002"
)
BRACKETS = "\"'()[]{}"
CLOSERS = "\"')]}"
OPERATORS = "-=+*/<>^|%~&"
_INVISIBLE = (
    "\u00ad\u034f\u061c\u180e\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"
)
_VARIANTS = {
    "'": "\u2018\u2019\u201a\u201b\u02bc",
    '"': "\u201c\u201d\u201e\u201f\u00ab\u00bb\u300c\u300d\u300e\u300f",
    "-": "\u2010\u2011\u2012\u2013\u2014\u2015\u2212",
    "": _INVISIBLE + "".join(map(chr, range(0xFE00, 0xFE10))) + "\u00bf\u00a1",
}
# Compatibility mappings that change how a character looks, not what it says: no <super>, <sub>, <fraction>, <circle>,
# <square>, <font>.
_LOOKS = {"wide", "narrow", "noBreak", "compat", "small", "vertical", "initial", "medial", "final", "isolated"}

_PARAGRAPH_INDENT = re.compile("^\u3000+", re.MULTILINE)
# Between two letters or emoji a joiner may change the word or the picture. A run of them is tried whole, and once: else
# the time grows with the square of its length.
_JOINERS_AT_AN_EDGE = re.compile(r"(?<!\S)[\u200c\u200d]+|(?<![\u200c\u200d])[\u200c\u200d]++(?!\S)")
_HAN_ENDS = re.compile(rf"[\u3001\u3002]+|(?<=[{UNSPACED}])[{ENDS}]+|(?<![\d)!\s])[{ENDS}]+(?=[{UNSPACED}])")
HAN = re.compile(rf"[\u3001\u3002{UNSPACED}]")
"""What the three patterns beside it look for; few texts hold any."""
_SCRIPT_CHANGE = re.compile(rf"(?<=[{UNSPACED}])(?=[^\s{UNSPACED}])|(?<=[^\s{UNSPACED}])(?=[{UNSPACED}])")
_BESIDE_UNSPACED = re.compile(rf"(?<=[{UNSPACED}]) | (?=[{UNSPACED}])")
# As in "yes,of course"; of letters only, so not in "f(a,b)" or "1,5".
RUN_TOGETHER = re.compile(r"(?<!\S)[^\W\d_]{2,}(?:(?:[,;!?]+|:)[^\W\d_]{2,})+")
END_OF_WORD = re.compile(rf"(?<=\S)[{ENDS}]+(?=[{re.escape(CLOSERS)}]*(?:\s|$))")
# As French and haste have it: "Comment ça va ?"
_END_AFTER_SPACE = re.compile(r" (?:[?!;:]+|\.{3,})(?= |$)")
# Most lines have neither, and these two see that sooner than the patterns whose beginnings they are.
_MAY_RUN_TOGETHER = re.compile(r"[,;!?:](?=[^\W\d_])")
_MAY_END_AFTER_SPACE = re.compile(r" [?!;:.]")
_OPERATOR = re.compile(r"[-=+*/<>^|%~&]*[=+*/<>^|%~][-=+*/<>^|%~&]*")
_ACRONYM = re.compile(r"[^\W\d_](?:\.[^\W\d_])+")


def _typed_variants() -> dict[int, str]:
    table = {}
    for code in range(0xA0, 0x10000):
        tag = unicodedata.decomposition(chr(code)).partition(">")[0].removeprefix("<")
        if tag in _LOOKS:
            plain = unicodedata.normalize("NFKC", chr(code))
            if plain == " " or not plain.startswith(" "):  # no accents that stand alone
                table[code] = plain
    return table | {ord(char): plain for plain, chars in _VARIANTS.items() for char in chars}


_TYPED = {chr(code): plain for code, plain in _typed_variants().items()}
_USUAL = "\u2019\u2018\u201c\u201d\u2013\u2014\u2026\xa0\u200b"
"""Most English texts that are not in ASCII hold none but these, and nine times `replace` is faster than a pattern."""
_TYPED_CHARACTER = re.compile(f"[{re.escape(''.join(_TYPED))}]")


def reading(text: str) -> str:
    """What `text` says. It holds no empty line, and white space neither first nor last; it is empty only if `text` is
    white space and invisible characters."""
    return said(in_plain_characters(text))


def in_plain_characters(text: str) -> str:
    """`text` with each character as it would be typed by hand, and without invisible ones."""
    if text.isascii():
        return text
    text = unicodedata.normalize("NFC", text)
    if "\u3000" in text:
        text = _PARAGRAPH_INDENT.sub("", text)
    plain = text
    for char in _USUAL:
        plain = plain.replace(char, _TYPED[char])
    if plain.isascii():
        return plain
    text, num_typed = _TYPED_CHARACTER.subn(lambda match: _TYPED[match[0]], text)
    if num_typed:
        text = unicodedata.normalize("NFC", text)
    if "\u200c" in text or "\u200d" in text:
        text = _JOINERS_AT_AN_EDGE.sub("", text)
    return text


def said(text: str) -> str:
    """The reading of a text `in_plain_characters`."""
    text = text.strip()
    pieces: list[str] = []
    in_fence = after_code = False
    for line in text.splitlines():
        words = line.strip()
        if not words:
            continue
        is_fence = words.startswith("```")
        is_code = in_fence or is_fence or line[0].isspace()
        what = line.rstrip() if is_code else prose(words)
        if what:
            pieces += ["\n" if is_code or after_code else " ", what]
            after_code = is_code
        in_fence ^= is_fence
    return "".join(pieces[1:]) or " ".join(text.split())


def prose(line: str) -> str:
    """The reading of a line in plain characters that is no code. White space is neither first nor last in either."""
    mixed = not line.isascii() and bool(HAN.search(line))
    if mixed:
        line = _SCRIPT_CHANGE.sub(" ", _HAN_ENDS.sub(" ", line))
    if _MAY_END_AFTER_SPACE.search(line):
        line = _END_AFTER_SPACE.sub(without_end, line)
    if _MAY_RUN_TOGETHER.search(line):
        line = RUN_TOGETHER.sub(lambda match: re.sub("[,;!?:]+", r"\g<0> ", match[0]), line)
    tokens = line.split()
    if line != line.lower():
        tokens = [
            token.lower() if token != token.lower() and is_word(tokens, i) else token for i, token in enumerate(tokens)
        ]
    line = END_OF_WORD.sub(without_end, " ".join(tokens))
    return _BESIDE_UNSPACED.sub("", line) if mixed else line


def is_word(tokens: list[str], i: int) -> bool:
    """Whether the capitals of a token may be those of any word in its place."""
    word = _bare(tokens[i])
    before, after = tokens[i - 1] if i > 0 else "", tokens[i + 1] if i + 1 < len(tokens) else ""
    if not before[:1].isalnum() and _OPERATOR.fullmatch(before):
        return False
    if not after[:1].isalnum() and _OPERATOR.fullmatch(after):
        return False
    if "." in word and _ACRONYM.fullmatch(word):
        return True
    if not word.isalpha() and not all(char in "'-" or unicodedata.category(char)[0] in "LM" for char in word):
        return False
    if len(word) > 2 or word == "I" or (len(word) == 2 and word.isupper() and not before[-1:].isdigit()):
        return True
    if before[-1:].isdigit():  # a unit: 5 Mb
        return False
    # One letter, or Mb: an ordinary word only where a capital has to be, at the start of a sentence or in a title.
    if not before or before[-1] in ".!?:":
        return len(word) == 2 or len(_bare(after)) > 1
    return after[:1].isupper() and len(word + _bare(after)) > 2


def _bare(token: str) -> str:
    return token.strip(BRACKETS + ".,;:!?")


def without_end(match: re.Match[str]) -> str:
    """Nothing, or what has to stay of the punctuation: all of it after nothing, `!` where it may be a factorial."""
    # Most ends stand behind a word of two letters or more.
    place = match.start()
    if place > 1 and match.string[place - 1].isalpha() and match.string[place - 2].isalnum() and match[0][0] != " ":
        return ""
    start = max(match.start() - 8, 0)  # not the whole text, which may have many ends
    before = match.string[start : match.start()].rstrip(BRACKETS)
    after = match.string[match.end() : match.end() + 2].strip()
    if not before or not (before[-1] in "+#%" or unicodedata.category(before[-1])[0] in "LMNS"):
        return match[0]
    if match[0][0] == " " and after and not after.isupper():
        return match[0]
    single = before[-1].isalpha() and not before[-2:-1].isalnum()
    if before[-1].isdigit() or single or match.string[match.start() - 1] == ")":
        end = match[0].lstrip()
        return end[: len(end) - len(end.lstrip("!"))]
    return ""
