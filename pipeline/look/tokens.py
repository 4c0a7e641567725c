"""Token ids as text: the teacher's tokenizer, where it can still be loaded, and what each of its ids reads as."""

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stillhouse.pipeline.look.place import Place
from stillhouse.schemas.config import values_of_teacher
from stillhouse.stages.teacher.pretrained import load_tokenizer, tokenizer_sha256

_SPACE = "\u2581"  # SentencePiece's


def teacher_tokenizer(place: Place, model: str | None = None) -> tuple[Any, str | None]:
    """The tokenizer of the teacher that a place's configuration names, or that of `model` (a folder or a hub id); or
    None, and a sentence on why not. Needs no torch. Code that comes with a model never runs here, whatever the run
    allowed: the run may be somebody else's.
    """
    config = place.config or {}
    if "teachers[0].model" in config:  # all have one tokenizer
        config = values_of_teacher(config, 0)
    name = model or config.get("teacher.model") or ((place.manifest or {}).get("teacher") or {}).get("model")
    if not isinstance(name, str):
        return None, "tokens are shown as ids: nothing here names the teacher (--tokenizer MODEL does)"
    revision = None if model else config.get("teacher.revision")
    try:
        from transformers.utils.hub import cached_file

        cached_file(name, "tokenizer_config.json", revision=revision)  # of what is gone, AutoTokenizer says so in 20 s
        tokenizer = load_tokenizer(name, revision, False)
        found = tokenizer_sha256(tokenizer)
    except Exception as error:  # of a library, about files or a hub that nobody promised
        return None, (
            f"tokens are shown as ids: the tokenizer of {name} cannot be loaded here ({_why(name, error)}); "
            "--tokenizer MODEL names another place to load it from"
        )
    wanted = ((place.manifest or {}).get("teacher") or {}).get("tokenizer_sha256", found)
    if found != wanted:
        return None, f"tokens are shown as ids: the tokenizer of {name} is not the one that the manifest names"
    return tokenizer, None


def _why(name: str, error: Exception) -> str:
    """Of a name that is a path, not a hub's `owner/model`."""
    if name.startswith(("/", "./", "../", "~")) or name.count("/") > 1:
        if not Path(name).exists():
            return "the folder does not exist here"
        return f"the folder holds none that can be read: {type(error).__name__}"
    if isinstance(error, OSError):
        return "it is in no cache here, and the hub did not give it"
    return type(error).__name__


def token_texts(tokenizer: Any, ids: Iterable[int]) -> list[str]:
    """What each id reads as, on its own; bytes that are not whole characters as \\xNN, ids that the tokenizer does not
    have, and all without a tokenizer, as #id."""
    if tokenizer is None:
        return [f"#{i}" for i in ids]
    backend = tokenizer.backend_tokenizer
    added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items()}
    as_bytes = _bytes_of_characters() if _is_byte_level(tokenizer) else None
    return [added[i] if i in added else _text(backend.id_to_token(i), i, as_bytes) for i in ids]


def _text(piece: str | None, i: int, as_bytes: dict[str, int] | None) -> str:
    if piece is None:
        return f"#{i}"
    if as_bytes is not None:
        if any(character not in as_bytes for character in piece):
            return piece
        return bytes(as_bytes[character] for character in piece).decode("utf-8", errors="backslashreplace")
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        byte = int(piece[3:5], 16)
        return chr(byte) if byte < 128 else f"\\x{byte:02x}"
    return piece.replace(_SPACE, " ")


@functools.lru_cache(maxsize=4)
def _is_byte_level(tokenizer: Any) -> bool:
    """Whether its pieces are spelled in GPT-2's characters for bytes. Kept: writing a tokenizer out takes 50 ms."""
    decoder = json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder") or {}
    return any(part.get("type") == "ByteLevel" for part in [decoder, *decoder.get("decoders", [])])


@functools.cache
def _bytes_of_characters() -> dict[str, int]:
    """GPT-2's spelling: printable bytes stand for themselves, the others for characters from 256 on, in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
