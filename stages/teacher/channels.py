"""What a teacher wrote, as a message: its answer in `content`, its thinking in `reasoning_content`.

Ids are what a student learns; messages are for people and for trainers that take text. So that nothing is lost between
the two, control tokens that a teacher writes stay in the text as they are spelled, except the one that ends its turn,
and a row says where its messages, rendered again, are not the text of its ids.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from stillhouse.stages.teacher import TemplateError
from stillhouse.stages.teacher.chat import MARKS, Chat
from stillhouse.stages.teacher.template import HARMONY, HARMONY_OPENING, REASONING, THINKING, as_parts

CONTENT_PARTS = "content_parts"
NAMED_THINKING = "named_thinking"
REFUSED = "refused"
CUT_OFF = "cut_off"
THINKING_LEFT_OUT = "thinking_left_out"
EMPTY_THINKING = "empty_thinking"
END_OF_TURN = "end_of_turn"
WHITESPACE = "whitespace"
TEXT = "text"

DIFFERENCES: dict[str, str] = {
    CONTENT_PARTS: 'the same once each content is `[{"type": "text", "text": content}]`',
    NAMED_THINKING: "the same once `reasoning_content` is named `thinking`",
    REFUSED: "the template refuses the messages",
    CUT_OFF: "the last answer reached `sampling.max_tokens`; the template ends it",
    THINKING_LEFT_OUT: "the template leaves out the thinking",
    EMPTY_THINKING: "the template writes an empty block of thinking where there is none",
    END_OF_TURN: "the teacher ended its turn with another token than the template",
    WHITESPACE: "they differ in white space",
    TEXT: "they differ in text",
}
"""Every value of `rendering_differs`. A row gets the first that holds."""

_HARMONY_MESSAGE = re.compile(r"<\|channel\|>(\w+)")


class Channels:
    """Makes messages of what the teacher of `chat` writes. `marks` open and close its thinking, beside those that are
    known."""

    def __init__(self, chat: Chat, marks: tuple[str, str]) -> None:
        self._chat = chat
        self._marks = list(dict.fromkeys((*MARKS, marks)))
        self._opening = chat.opened_thinking()
        self._is_harmony = chat.is_harmony

    def message(self, token_ids: Sequence[int], *, is_opened: bool) -> dict[str, str | None]:
        """The assistant's message of `token_ids` [S], the token that ended the turn left out. With `is_opened` they
        follow the prompt as the template wrote it, with its opening of thinking."""
        text = str(self._decode(token_ids))
        if self._is_harmony:
            return self._harmony_message(text)
        text = (self._opening if is_opened else "") + text
        for start, end in self._marks:
            inside = text.lstrip()
            if not inside.startswith(start):
                continue
            form = self._chat.jinja.thinking_form(start, end)
            if form.key == "content":
                break
            thought, is_closed, answer = inside.removeprefix(start).partition(end)
            thought = thought.removeprefix(form.before)
            if is_closed:
                thought = thought.removesuffix(form.after)
                answer = answer.removeprefix(form.gap)
            return {"role": "assistant", "content": answer, REASONING: thought}
        return {"role": "assistant", "content": text, REASONING: None}

    def _harmony_message(self, text: str) -> dict[str, str | None]:
        """Analysis that comes first is thinking, a final message alone is the answer; all else (calls of tools, what is
        said before them) stays marked."""
        messages = (HARMONY_OPENING + text).split("<|start|>")[1:]
        thoughts: list[str] = []
        while messages:
            header, has_body, body = messages[0].partition("<|message|>")
            channel = _HARMONY_MESSAGE.search(header)
            name = channel.group(1) if channel is not None and has_body and " to=" not in header else ""
            if name == "final" and len(messages) == 1:
                return self._answer(body, thoughts)
            if name != "analysis":
                break
            thoughts.append(body.removesuffix("<|end|>"))
            messages.pop(0)
        return self._answer("".join(f"<|start|>{message}" for message in messages), thoughts)

    @staticmethod
    def _answer(content: str, thoughts: list[str]) -> dict[str, str | None]:
        return {"role": "assistant", "content": content, REASONING: "\n\n".join(thoughts) if thoughts else None}

    def difference(
        self, messages: list[dict[str, str | None]], input_ids: npt.NDArray[Any], finish_reason: str
    ) -> str | None:
        """Why `messages`, rendered by the teacher's template, are not the text of `input_ids` [T], as one of
        `DIFFERENCES`; None where they are. White space after the end does not count."""
        trained = str(self._decode(input_ids.tolist()))
        stored = self._render(messages)
        if stored is not None and _is_cut_off(stored, trained, finish_reason):
            return CUT_OFF  # told first: where answers are short of room it is most of them
        if self._equal(stored, trained):
            return None
        given: list[dict[str, Any]] = [{k: v for k, v in message.items() if v is not None} for message in messages]
        only_parts = only_named = False
        if self._chat.jinja.wants_parts:
            given, only_parts = [dict(message) for message in as_parts(given)], True
        if self._thinking_key(messages) == THINKING:
            given = [{THINKING if k == REASONING else k: v for k, v in message.items()} for message in given]
            only_named = not only_parts
        rendered = self._render(given)
        if self._equal(rendered, trained):
            return CONTENT_PARTS if only_parts else NAMED_THINKING if only_named else TEXT
        if rendered is None:
            return REFUSED
        return self._why(rendered, trained, messages, input_ids, finish_reason)

    def _why(
        self,
        rendered: str,
        trained: str,
        messages: list[dict[str, str | None]],
        input_ids: npt.NDArray[Any],
        finish_reason: str,
    ) -> str:
        if _is_cut_off(rendered, trained, finish_reason):
            return CUT_OFF
        if any((message.get(REASONING) or "").strip() not in rendered for message in messages):
            return THINKING_LEFT_OUT
        blocks = "|".join(rf"{re.escape(start)}\s*{re.escape(end)}\s*" for start, end in self._marks)
        if self._equal(re.sub(blocks, "", rendered), trained):
            return EMPTY_THINKING
        last = str(self._decode(input_ids[-1:].tolist()))
        body = trained.removesuffix(last)
        if finish_reason == "stop" and rendered.startswith(body):
            rest = rendered[len(body) :].strip()
            if not rest or rest.startswith(tuple(self._chat.control_ids)):
                return END_OF_TURN
        if "".join(rendered.split()) == "".join(trained.split()):
            return WHITESPACE
        return TEXT

    def _thinking_key(self, messages: list[dict[str, str | None]]) -> str | None:
        """The name under which the template reads the thinking of `messages`; None where they have none."""
        if all(message.get(REASONING) is None for message in messages):
            return None
        pairs = [HARMONY] if self._is_harmony else self._marks
        keys = [self._chat.jinja.thinking_form(*pair).key for pair in pairs]
        return next((key for key in keys if key is not None), None)

    def _equal(self, rendered: str | None, trained: str) -> bool:
        """Whether a student that reads `rendered` reads `trained`. Some tokenizers change white space and letters on
        the way to ids and back."""
        if rendered is None:
            return False
        if rendered.rstrip() == trained.rstrip():
            return True
        encoded = self._chat.tokenizer.encode(rendered, add_special_tokens=False)
        return str(self._decode(encoded)).rstrip() == trained.rstrip()

    def _render(self, messages: Sequence[dict[str, Any]]) -> str | None:
        try:
            return self._chat.jinja.render_as_given(messages, False)
        except TemplateError:
            return None

    def _decode(self, token_ids: Sequence[int]) -> Any:
        return self._chat.tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def without_end(token_ids: list[int], finish_reason: str | None, end_ids: set[int], control_ids: set[int]) -> list[int]:
    """An answer's `token_ids` without the token that ended its turn (vLLM knows ends that the template does not)."""
    last = token_ids[-1] if token_ids else None
    is_end = last in end_ids or (finish_reason in ("stop", "given") and last in control_ids)
    return token_ids[:-1] if is_end else token_ids


def _is_cut_off(rendered: str, trained: str, finish_reason: str) -> bool:
    """Whether a template ended an answer that has no end."""
    trained = trained.rstrip()
    return finish_reason == "length" and rendered.startswith(trained) and bool(rendered[len(trained) :].strip())
