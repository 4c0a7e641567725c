"""The teacher's chat template, from messages to token ids, with two guarantees.

1. Prompts without control strings get exactly the ids of `apply_chat_template` (so exactly the BOS it writes).
2. Data cannot speak as control: a special-token string inside a message is encoded as plain text.

How: inside messages every control string is first replaced by a placeholder, so that in the rendered text control
strings come from the template alone. Those are renamed to unguessable names, the placeholders are put back, and the
text is encoded in one call by a copy of the tokenizer in which the control tokens carry the new names and the old ids.
Encoding stays one call over the whole text, so whitespace, prefix and merge rules act as they do in the original.

Control strings are the tokenizer's special tokens and those of its other added tokens that the template itself writes
(`<think>` and the like are often not flagged special). Other added tokens, such as Gemma's runs of newlines, are text.

Leaf module: imports no stage. Measured against transformers 5.19, tokenizers 0.22.
"""

import json
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.config import TeacherConfig

Message = dict[str, str]
IntArray = npt.NDArray[np.int32]

# Not text in any script: the first two characters of a plane reserved for private use. A message that holds them is
# treated like one that holds a control string.
_MARK = "\U0010fffd\U0010fffc"


class TemplateError(ValueError):
    """A template or tokenizer that cannot be used, or that refuses a conversation; the message says why."""


class Chat:
    """A tokenizer with its chat template.

    `tokenizer` is a transformers fast tokenizer; raises `TemplateError` when it is not one or has no template.
    """

    def __init__(
        self, tokenizer: Any, template: str | None = None, template_kwargs: dict[str, Any] | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.template: str | None = template or tokenizer.get_chat_template()
        self.template_kwargs = template_kwargs or {}
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise TemplateError(
                f"teacher.model: its tokenizer ({type(tokenizer).__name__}) has no tokenizer.json form, which the "
                "guard against control tokens needs; convert it to a fast tokenizer"
            )
        added = json.loads(backend.to_str())["added_tokens"]
        self.control_ids: dict[str, int] = {
            token["content"]: token["id"]
            for token in added
            if token["special"] or token["content"] in str(self.template)
        }
        self._strings = [_MARK, *self.control_ids]
        # Longest first: where one control string begins another, the tokenizer takes the longer.
        self._control = re.compile("|".join(map(re.escape, sorted(self._strings, key=len, reverse=True))))
        self._placeholder = re.compile(re.escape(_MARK) + "([0-9]+)" + re.escape(_MARK))
        self._index = {text: i for i, text in enumerate(self._strings)}
        nonce = secrets.token_hex(8)
        self._renamed = {text: f"{_MARK}{nonce}:{i}{_MARK}" for i, text in enumerate(self.control_ids)}
        self._encoder = _renamed_tokenizer(backend, self.control_ids, self._renamed)
        self._expected: dict[tuple[str, ...], list[str]] = {}

    def prompt_ids(self, messages: Sequence[Message]) -> IntArray:
        """Token ids [T] int32 of `messages` and the opening of the assistant's turn.

        Raises `TemplateError` when the template refuses the conversation or a control token would come from data.
        """
        return self.encode(self.render(messages))

    def num_prompt_tokens(self, user_turns: Sequence[str]) -> list[int]:
        """Length in tokens of the prompt that each text makes as a first user turn; 0 where the template refuses it,
        which generate will say again with its reason."""
        lengths = []
        for text in user_turns:
            try:
                lengths.append(len(self.prompt_ids([{"role": "user", "content": text}])))
            except TemplateError:
                lengths.append(0)
        return lengths

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The rendered conversation, control strings renamed where the template wrote them and as they were where a
        message holds them. For `encode`; nothing else understands the names.
        """
        defused = [{**message, "content": self._control.sub(self._defuse, message["content"])} for message in messages]
        text = self._template(defused, add_generation_prompt)
        pieces = self._placeholder.split(text)  # template and plain text, then an index into self._strings, in turn
        written = [string for piece in pieces[::2] for string in self._control.findall(piece)]
        # A control string can still arise where data meets template text; neutral messages show which ones belong.
        shape = (*(message["role"] for message in messages), str(add_generation_prompt))
        if shape not in self._expected:
            neutral = [{"role": message["role"], "content": "x"} for message in messages]
            self._expected[shape] = self._control.findall(self._template(neutral, add_generation_prompt))
        if written != self._expected[shape]:
            raise TemplateError("a control token would arise where a message meets the template; the row is refused")
        for i in range(0, len(pieces), 2):
            pieces[i] = self._control.sub(lambda match: self._renamed[match.group()], pieces[i])
        for i in range(1, len(pieces), 2):
            pieces[i] = self._strings[int(pieces[i])]
        return "".join(pieces)

    def next_turn_ids(self, user_turns: Sequence[str], system_prompt: str | None = None) -> IntArray:
        """Token ids [T] int32 between the teacher's last words and its next: the end of its turn, the newest of
        `user_turns`, and the opening of its next turn. The teacher's answers themselves are carried as ids, so their
        text is not needed.
        """
        answer = "answer"
        while any(answer in turn for turn in user_turns):
            answer += "_"
        messages = [{"role": "system", "content": system_prompt}] if system_prompt is not None else []
        for turn in user_turns:
            messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer}]
        return self.encode(self.render(messages[:-1]).rpartition(answer)[2])

    def encode(self, rendered: str) -> IntArray:
        """Token ids [T] int32 of what `render` returned."""
        return np.asarray(self._encoder.encode(rendered, add_special_tokens=False).ids, dtype=np.int32)

    def _defuse(self, match: re.Match[str]) -> str:
        return f"{_MARK}{self._index[match.group()]}{_MARK}"

    def _template(self, messages: list[Message], add_generation_prompt: bool) -> str:
        from jinja2.exceptions import TemplateError as JinjaError

        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    chat_template=self.template,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    **self.template_kwargs,
                )
            )
        except JinjaError as error:
            raise TemplateError(f"the chat template refuses the conversation: {error.message}") from None

    def end_of_turn_ids(self) -> list[int]:
        """Ids that end the teacher's turn: the tokenizer's EOS and the control token the template writes after an
        assistant message."""
        ids = set()
        if self.tokenizer.eos_token_id is not None:
            ids.add(int(self.tokenizer.eos_token_id))
        marker = "answer"
        conversation = [{"role": "user", "content": "question"}, {"role": "assistant", "content": marker}]
        after = self._template(conversation, False).rpartition(marker)[2]
        match = self._control.search(after)
        if match is not None and match.group() in self.control_ids:
            ids.add(self.control_ids[match.group()])
        return sorted(ids)


def _renamed_tokenizer(backend: Any, control_ids: dict[str, int], renamed: dict[str, str]) -> Any:
    """A copy of a `tokenizers.Tokenizer` in which control tokens have other names and the same ids."""
    from tokenizers import Tokenizer

    spec = json.loads(backend.to_str())
    spec["truncation"] = spec["padding"] = None
    # Templates already name every special token; a post-processor would add a second BOS.
    spec["post_processor"] = None
    for token in spec["added_tokens"]:
        if token["content"] in renamed:
            token["content"] = renamed[token["content"]]
            token["normalized"] = False
    vocab = spec["model"].get("vocab")
    if isinstance(vocab, dict):
        spec["model"]["vocab"] = {renamed.get(piece, piece): index for piece, index in vocab.items()}
        if spec["model"].get("unk_token") in renamed:
            spec["model"]["unk_token"] = renamed[spec["model"]["unk_token"]]
    elif isinstance(vocab, list):  # Unigram: [piece, score] pairs
        spec["model"]["vocab"] = [[renamed.get(piece, piece), score] for piece, score in vocab]
    encoder = Tokenizer.from_str(json.dumps(spec))
    for text, index in control_ids.items():
        if encoder.token_to_id(renamed[text]) != index:
            raise TemplateError(
                f"teacher.model: control token {text!r} has id {index} but {encoder.token_to_id(renamed[text])} in the "
                "guarded copy of the tokenizer; this tokenizer cannot be used safely"
            )
    return encoder


def load_chat(teacher: TeacherConfig) -> Chat:
    """The chat of a configured teacher; reads the tokenizer from its folder or the hub.

    Raises `TemplateError` when there is no tokenizer or no template.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(teacher.model, revision=teacher.revision)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TemplateError(
            f"teacher.model: no tokenizer at {teacher.model!r} ({reason}); check the name or folder"
        ) from None
    template = Path(teacher.chat_template).read_text(encoding="utf-8") if teacher.chat_template else None
    if template is None and tokenizer.chat_template is None:
        raise TemplateError(
            f"teacher.model: {teacher.model!r} has no chat template; choose an instruct model or set teacher.chat_template"
        )
    return Chat(tokenizer, template, teacher.chat_template_kwargs)
