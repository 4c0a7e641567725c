"""What pages of the browser share: how a conversation is drawn, as a script and a style sheet without dependencies."""

from pathlib import Path


def asset(name: str) -> str:
    """The text of a file in this folder: conversation.js, conversation.css."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
