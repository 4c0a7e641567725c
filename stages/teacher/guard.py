"""The guard against control tokens: text from data is encoded as text, whatever it spells.

Inside messages every control string is first replaced by a placeholder, so that in the rendered text control strings
come from the template alone. Those are renamed to unguessable names, the placeholders are put back, and the text is
encoded in one call by a copy of the tokenizer in which the control tokens carry the new names and the old ids. Encoding
stays one call over the whole text, so whitespace, prefix and merge rules act as they do in the original.

Control strings are the tokenizer's special tokens, and of its other added tokens those shaped `<|...|>` and those with
punctuation that the template itself writes (`<think>` and the like are often not flagged special). Other added tokens,
such as Gemma's runs of newlines, are text. A template that marks turns with plain words (Llama 2's `[INST]`) has no
token there for anyone to guard: data that spells the words gets the same ids, as it does everywhere else.

Measured against transformers 5.19, tokenizers 0.23.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from stillhouse.stages.teacher import TemplateError
from stillhouse.stages.teacher.bound import bound_of

IntArray = npt.NDArray[np.int32]

MARK = "\U0010fffd\U0010fffc"
"""Not text in any script: the first two characters of a plane reserved for private use. A message that holds them is
treated like one that holds a control string."""

_BYTE_NAME = re.compile("<0x[0-9A-F]{2}>")


class Guard:
    """A tokenizer's copy in which control tokens have other names and the same ids.

    `backend` is a `tokenizers.Tokenizer`, `written` what the chat template writes, `unknown` the tokenizer's unknown
    token, and `nonce` a word that nobody can guess.
    """

    def __init__(self, backend: Any, written: str, unknown: str | None, nonce: str) -> None:
        spec = json.loads(backend.to_str())
        self.control_ids: dict[str, int] = {
            token["content"]: token["id"] for token in spec["added_tokens"] if _is_control(token, written)
        }
        self._backend = backend
        self._strings = [MARK, *self.control_ids]
        self._control = _any_of(self._strings)
        self._placeholder = re.compile(re.escape(MARK) + "([0-9]+)" + re.escape(MARK))
        self._index = {text: i for i, text in enumerate(self._strings)}
        self._renamed = {text: f"{MARK}{nonce}:{i}{MARK}" for i, text in enumerate(self.control_ids)}
        self._name = re.compile(f"{nonce}:([0-9]+)")
        self._bound = bound_of(spec)
        self._encoder = _renamed_tokenizer(spec, self.control_ids, self._renamed)
        # The unknown token's id is also what characters outside the vocabulary become.
        self._counted = np.zeros(1 + max(self.control_ids.values(), default=0), dtype=np.bool_)
        self._counted[[index for text, index in self.control_ids.items() if text != unknown]] = True
        self._uncounted = next((i for i, text in enumerate(self.control_ids) if text == unknown), None)
        self._speaks_bytes = _speaks_bytes(self._encoder)

    def reads_as_original(self, text: str) -> bool:
        """Whether `text`, all of it the template's, gets the ids that the original tokenizer gives."""
        guarded = self._control.sub(lambda match: self._renamed.get(match.group(), ""), text)
        ids: list[int] = self._encoder.encode(guarded, add_special_tokens=False).ids
        return bool(ids == self._backend.encode(text, add_special_tokens=False).ids)

    def defuse(self, text: str) -> str:
        """A message's text with a placeholder for every control string; `disguise` puts them back."""
        return self._control.sub(lambda match: f"{MARK}{self._index[match.group()]}{MARK}", text)

    def control_strings(self, text: str) -> list[str]:
        """The control strings in `text`, in order."""
        return self._control.findall(text)

    def first_control_string(self, text: str) -> str | None:
        """The control string with which `text` begins, after whitespace."""
        match = self._control.match(text.lstrip())
        return match.group() if match is not None and match.group() in self.control_ids else None

    def disguise(self, rendered: str, expected: list[str]) -> str:
        """`rendered` from defused messages, with the template's control strings renamed and the messages' own put back.

        Raises `TemplateError` when the control strings outside of placeholders are not those `expected`.
        """
        pieces = self._placeholder.split(rendered)  # template and plain text, then an index into self._strings, in turn
        # A control string can still arise where data meets text of the template.
        if [string for piece in pieces[::2] for string in self._control.findall(piece)] != expected:
            raise TemplateError("a control token would arise where a message meets the template; the row is refused")
        for i in range(0, len(pieces), 2):
            pieces[i] = self._control.sub(lambda match: self._renamed[match.group()], pieces[i])
        for i in range(1, len(pieces), 2):
            pieces[i] = self._strings[int(pieces[i])]
        return "".join(pieces)

    def refuse_byte_names(self, text: str) -> None:
        """Raises `TemplateError` when `text` spells the name of a byte token and would be read as the byte."""
        if not self._speaks_bytes:
            return
        normalizer = self._encoder.normalizer
        if _BYTE_NAME.search(text if normalizer is None else normalizer.normalize_str(text)) is not None:
            raise TemplateError(
                "a message spells the name of a byte token, which this tokenizer would read as the byte; the row is "
                "refused"
            )

    def holds_control(self, text: str) -> bool:
        """Whether a message's text is changed by `defuse`."""
        return self._control.search(text) is not None

    def most_tokens(self, rendered: str) -> int | None:
        """The most tokens that the rendered conversation can have, as long as none of its messages `holds_control`;
        None where the tokenizer gives no bound. A renamed control string is still one token."""
        return None if self._bound is None else self._bound.most_tokens(rendered)

    def encode(self, disguised: str) -> IntArray:
        """Token ids [T] int32 of what `disguise` returned.

        Raises `TemplateError` when the control tokens among them are not as many as the template wrote.
        """
        return self._checked(self._encoder.encode(disguised, add_special_tokens=False).ids, disguised)

    def num_tokens(self, disguised: Sequence[str]) -> list[int]:
        """The length of each text's `encode`, 0 where that raises. One batch, which a tokenizer spreads over all
        cores."""
        lengths = []
        encodings = self._encoder.encode_batch_fast(list(disguised), add_special_tokens=False)
        for text, encoding in zip(disguised, encodings, strict=True):
            try:
                lengths.append(len(self._checked(encoding.ids, text)))
            except TemplateError:
                lengths.append(0)
        return lengths

    def _checked(self, encoded: list[int], disguised: str) -> IntArray:
        ids = np.asarray(encoded, dtype=np.int32)
        num_written = sum(int(number) != self._uncounted for number in self._name.findall(disguised))
        if np.count_nonzero(self._counted[ids[ids < len(self._counted)]]) != num_written:
            raise TemplateError("the tokenizer adds or loses control tokens of the template; the row is refused")
        return ids


def _is_control(token: dict[str, Any], written: str) -> bool:
    """Whether an entry of tokenizer.json's `added_tokens` is a control token; `written` is what the template writes."""
    text = token["content"]
    if token["special"] or re.fullmatch(r"<[|｜].+[|｜]>", text):
        return True
    return text in written and any(not char.isalnum() and not char.isspace() for char in text)


def _any_of(strings: Sequence[str]) -> re.Pattern[str]:
    """A pattern for the leftmost of `strings` and the longest one there, as a tokenizer looks for added tokens.
    Thousands of them (Gemma's) cost no more than a few."""
    trie: dict[str, Any] = {}
    for text in strings:
        node = trie
        for char in text:
            node = node.setdefault(char, {})
        node[""] = {}

    def pattern(node: dict[str, Any]) -> str:
        branches = [re.escape(char) + pattern(child) for char, child in node.items() if char]
        if "" not in node:
            return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"
        return f"(?:{'|'.join(branches)})?" if branches else ""

    return re.compile(pattern(trie))


def _speaks_bytes(encoder: Any) -> bool:
    """Whether text that spells a byte token's name becomes the byte: Unigram models that fall back to bytes do that."""
    index = encoder.token_to_id("<0x41>")
    return index is not None and any(
        index in encoder.encode(text, add_special_tokens=False).ids for text in ("<0x41>", "a <0x41>")
    )


def _renamed_tokenizer(spec: dict[str, Any], control_ids: dict[str, int], renamed: dict[str, str]) -> Any:
    """The `tokenizers.Tokenizer` of a tokenizer.json, with other names for control tokens and the same ids. Changes
    `spec`."""
    from tokenizers import Tokenizer

    spec["truncation"] = spec["padding"] = None
    # Templates already name every special token; a post-processor would add a second BOS.
    spec["post_processor"] = None
    for token in spec["added_tokens"]:
        token["content"] = renamed.get(token["content"], token["content"])
    model = spec["model"]
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        model["vocab"] = {renamed.get(piece, piece): index for piece, index in vocab.items()}
        if model.get("unk_token") in renamed:
            model["unk_token"] = renamed[model["unk_token"]]
    elif isinstance(vocab, list):  # Unigram: [piece, score] pairs
        model["vocab"] = [[renamed.get(piece, piece), score] for piece, score in vocab]
    if "merges" in model:
        # Some converters list merges that would spell a control token, which is also in the vocabulary: not for data.
        pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if renamed.keys().isdisjoint([*pair, "".join(pair)])]
    encoder = Tokenizer.from_str(json.dumps(spec))
    for text, index in control_ids.items():
        if encoder.token_to_id(renamed[text]) != index:
            raise TemplateError(
                f"teacher.model: control token {text!r} has id {index} but {encoder.token_to_id(renamed[text])} in the "
                "guarded copy of the tokenizer; this tokenizer cannot be used safely"
            )
    return encoder
