"""What a text says in its own voice."""

import re

_QUOTED = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]+`|^[ \t]*>.*$|\"[^\"\n]{1,400}\"|“[^”]{1,400}”|„[^“”]{1,400}[“”]|«[^»]{1,400}»|"
    r"「[^」]{1,400}」|『[^』]{1,400}』",
    re.DOTALL | re.MULTILINE,
)


def unquoted(text: str) -> str:
    """The text without code, quoted lines and what stands in quotation marks."""
    return _QUOTED.sub(" … ", text)
