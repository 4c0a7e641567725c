"""What a message holds, as text."""

from stillhouse.stages.sources.row import MALFORMED_CONVERSATION, NOT_TEXT, UNDECODABLE, RefusedError


def text_of(content: object) -> str:
    """The text that a message's content is, or that its parts are together. Raises `RefusedError` where it is none."""
    if content is None:
        raise RefusedError(MALFORMED_CONVERSATION)
    if isinstance(content, list):
        content = "".join(_part(part) for part in content)
    if isinstance(content, bytes):
        content = content.decode("utf-8", "surrogateescape")
    if not isinstance(content, str):
        raise RefusedError(NOT_TEXT)
    if not is_unicode(content):
        raise RefusedError(UNDECODABLE)
    return content


def _part(part: object) -> str:
    """The text of a part; Google's and Bedrock's parts have no type, those of ChatGPT's export are texts."""
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, dict) and part.get("type") in ("text", "input_text", None) else None
    if not isinstance(text, str):
        raise RefusedError(NOT_TEXT)
    return text


def is_unicode(text: str) -> bool:
    """Whether a string can be encoded as UTF-8. JSON escapes can spell half a surrogate pair, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
