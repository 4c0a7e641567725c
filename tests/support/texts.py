"""Texts that are hard to read: real ones, and such as nobody writes."""

import random

from tests.support.conversations import first_user_turns

PIECES = (
    *("a", "B", "I", "Mb", "U.S.", "é", "É", "e\u0301", "写", "诗", "ก", "ข", "ﬁ", "Å", "№", "²", "①", "ｗ", "Ａ", "ß"),
    *(" ", "  ", "\n", "\t", "\u00a0", "\u3000", "\u200b", "\u200d", "\ufe0f", "\u2028", "\x1c", "\x85", "```", "_"),
    *(".", ",", "!", "?", ":", ";", "...", "…", "，", "。", "！", "？", "(", ")", "]", "'", '"', "“", "”", "’", "«"),
    *("-", "=", "+", "*", "/", "%", "#", "5", "12", "½", "Ⅷ", "ſ", "İ", "ǅ", "ª", "Σ", "ς", "🤖", "👩", "\u0301"),
)
WORDS = ("the", "a", "i", "mb", "of", "code", "x", "don't", "e.g", "5", "of,code", "x:y", "paris;rome")


def golden_texts() -> list[str]:
    """Real ones, then such as nobody writes."""
    rng = random.Random(0)
    made = ["".join(rng.choices(PIECES, k=rng.randint(1, 40))) for _ in range(4000)]
    for _ in range(2000):
        words = (rng.choice([word, word.title(), word.upper()]) for word in rng.choices(WORDS, k=12))
        made.append("".join(word + rng.choice(["", " ", " ", ", ", ".", "!", " ? ", " ...", " :"]) for word in words))
    return first_user_turns(1500) + made


# Latin, Greek, Cyrillic, Armenian, Hebrew, Arabic, Devanagari, Thai, Myanmar, Ethiopic, Khmer, kana, Han, Hangul,
# signs, letters for mathematics, emoji.
SCRIPTS = (
    *((0x20, 0x7F), (0xA0, 0x180), (0x370, 0x400), (0x400, 0x460), (0x530, 0x590), (0x5B0, 0x5F5), (0x600, 0x6E0)),
    *((0x900, 0x970), (0xE00, 0xE5C), (0x1000, 0x1050), (0x1200, 0x1370), (0x1780, 0x17E0), (0x2000, 0x2070)),
    *((0x2100, 0x2200), (0x3000, 0x3100), (0x4E00, 0x4E80), (0xAC00, 0xAC80), (0xFF00, 0xFF60), (0x1D400, 0x1D440)),
    (0x1F600, 0x1F640),
)


def texts_in_scripts(num: int) -> list[str]:
    """Random words of one or two scripts, with the punctuation of ASCII; a few lines of code and lone surrogates."""
    rng = random.Random(1)
    texts = []
    for _ in range(num):
        scripts = rng.choices(SCRIPTS, k=rng.randint(1, 2))
        parts = []
        for _ in range(rng.randint(0, 30)):
            word = "".join(chr(rng.randrange(*rng.choice(scripts))) for _ in range(rng.randint(1, 9)))
            ends = ["", "", ".", "?!", ",", " !", " ...", ").", "!!!!!!!!", "\"'\"'\"'\"'."]
            spaces = [" ", " ", " ", "\n", "  ", "\r\n", "\n    ", "\n```\n", "\u2028", "\t"]
            parts.append(rng.choice([word, word, word.upper(), word.title(), f"({word}", "="]) + rng.choice(ends))
            parts.append(rng.choice(spaces))
        texts.append("".join(parts))
    return texts


ODD_TEXTS = [
    *("", " ", "\n", "\u200b", "!", "?", "..", "a", "A", "I", "\x1e", "\x1c\x1d", "\xff", "\r", "```", "```\n\n```"),
    *(
        "A B",
        "a A",
        "K =!!!!!!!!",
        "5 Mb",
        "Mb 5",
        "a Mb",
        "I- x",
        "'I-",
        "x = Y",
        "Y - x",
        "--- You",
        "U.S. E.L.",
        "n!",
        "(n)!",
        "5!?!",
    ),
    *(
        "x ?",
        "x ? Y",
        "x ? y",
        "x ?\tY",
        "x ...",
        "x ..",
        "x . Y",
        "a,b ab,cd abc,de:fg",
        "ab,,cd:ef",
        "\u00b2\u00b3!!ab",
    ),
    *("\u0130stanbul", "\u03a3\u03a3 \u03a3", "\ud800", "a \udfff B.", "\u01c5 \u01c5a", "\u00aa\u00aa A\u00aa"),
    *("  x\n  y\nz", "x\n  y\n\n\n  z  \nZ.", "x\r\n\ty\r\n\tz", "```\nA b.\n```\nA b.", "x\n```py\nA\n", "`` `\nA"),
    *(
        "((((((((A))))))))",
        "a" + ")" * 9 + ".",
        "a" + "." * 9,
        "a.)" * 9,
        "((((((a))))))!",
        '"A", "B"',
        "A" * 70 + " b.",
    ),
]
"""Each a case of its own: nothing, one letter, capitals beside signs, punctuation that stays, code, lone surrogates."""


def long_texts() -> list[str]:
    rng = random.Random(2)
    alphabets = ("aB .,!?\n", "\u0434\u0414 .,!", "\u5199\u3002 a!", "()a. ")
    return ["".join(rng.choices(alphabet, k=50_000)) for alphabet in alphabets]
