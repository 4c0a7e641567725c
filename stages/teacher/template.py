"""A chat template as text: messages in, words out; and what it does with them, tried before it is used.

Templates differ in what they read: `content` as a string or as a list of parts, a teacher's thinking under one name or
another, or not at all. Nothing says so but the template itself, so it is given words that nobody else writes.
"""

import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, NamedTuple

from stillhouse.stages.teacher import TemplateError

Message = Mapping[str, Any]

REASONING = "reasoning_content"
"""The field of a message that holds thinking, as vLLM, Qwen, DeepSeek's API and axolotl spell it."""

THINKING = "thinking"
"""The same field as the templates of gpt-oss and LFM2.5 spell it."""

HARMONY = ("<|channel|>analysis<|message|>", "<|end|>")
"""What opens and closes gpt-oss's thinking, and the tokens that open a message of the assistant's."""
HARMONY_OPENING = "<|start|>assistant"


class ThinkingForm(NamedTuple):
    """How a template writes an answer's thinking: under which key it reads it (`content`: within the content, marks and
    all; None: it leaves it out), and the white space that it puts behind the opening mark, before the closing one, and
    behind that."""

    key: str | None
    before: str = "\n"
    after: str = "\n"
    gap: str = "\n\n"


class Template:
    """The Jinja template `text` of a transformers `tokenizer`, with `kwargs` as more variables, on the day `today` (by
    default this one, UTC): a template that writes a date writes that one, however long it is used.

    Raises `TemplateError` when a user's words do not stand whole in what it writes, in whichever form they are given.
    """

    def __init__(self, tokenizer: Any, text: str, kwargs: dict[str, Any], today: date | None = None) -> None:
        self.text = text
        self.writes_date = False
        """Whether it has asked for the day."""
        self._tokenizer = tokenizer
        self._kwargs = {**kwargs, "strftime_now": self._strftime}
        self._today = today or datetime.now(UTC).date()
        nonce = secrets.token_hex(8)
        # Line breaks, indentation, capitals, markup and length: what a template may change where words stand alone.
        self._words = (
            f'Question{nonce} <b>É</b> & "it\'s" {{{{ 3 }}}}\n\n    <|no|> [x]\t日本🤖 {"word " * 1000}end{nonce}'
        )
        self._nonce = nonce
        self._thinking: dict[tuple[str, str], ThinkingForm] = {}
        self.wants_parts = False
        """Whether it reads content as a list of parts, `[{"type": "text", "text": …}]`, and not as a string."""
        as_string = self._seen(), self._seen(system=True)
        self.wants_parts = True
        as_parts = self._seen(), self._seen(system=True)
        # Parts only where they serve better: None (the template refuses) is worse than whole and better than lost.
        order = {True: 2, None: 1, False: 0}
        is_better = [order[seen] for seen in as_parts] > [order[seen] for seen in as_string]
        self.wants_parts = as_parts[0] is True and is_better
        seen, self._sees_system = as_parts if self.wants_parts else as_string
        if seen is False:
            raise TemplateError(
                "teacher.model: its chat template does not write a user's words as they are, given as a string or as "
                "a list of parts; set teacher.chat_template to one that does"
            )

    def render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        """What the template writes for `messages`, whose content is text.

        Raises `TemplateError`, without their text, when the template refuses them or fails on them.
        """
        if self.wants_parts:
            messages = as_parts(messages)
        return self.render_as_given(messages, add_generation_prompt)

    def render_as_given(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        """`render` in which content keeps its form."""
        from jinja2.exceptions import TemplateError as JinjaError

        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages),
                    chat_template=self.text,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    **self._kwargs,
                )
            )
        except JinjaError as error:
            raise TemplateError(f"the chat template refuses the conversation: {error.message}") from None
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # Raised inside the template; its words may quote a message.
            raise TemplateError(f"the chat template fails on the conversation: {type(error).__name__}") from None

    def require(self, system_prompt: bool) -> None:
        """Raises `TemplateError` when a run cannot use the template: it opens no turn for the teacher, or does not
        write a system prompt where there is to be one."""
        if system_prompt and self._sees_system is False:
            raise TemplateError(
                "generate.system_prompts: the chat template does not write a system prompt as it is; set it to null, "
                "or teacher.chat_template to one that writes it"
            )
        question = [{"role": "user", "content": self._words}]
        with_answer = [*question, {"role": "assistant", "content": f"answer{self._nonce}"}]
        prompt, closed = self.render(question, True), self.render(question, False)
        try:
            whole = self.render(with_answer, False)
        except TemplateError:
            return  # nothing to compare with
        written = prompt.rstrip()
        header = whole[len(written) :].partition(f"answer{self._nonce}")[0]
        if written == closed.rstrip() and whole.startswith(written) and header.strip():
            raise TemplateError(
                "teacher.model: its chat template opens no turn for the assistant (add_generation_prompt changes "
                "nothing), so the teacher would write its own header and the student learn it; set "
                "teacher.chat_template to one that writes it"
            )

    def thinking_form(self, start: str, end: str) -> ThinkingForm:
        """How it writes the thinking, between the marks `start` and `end`, of a conversation's last answer."""
        if (start, end) not in self._thinking:
            self._thinking[start, end] = self._find_thinking_form(start, end)
        return self._thinking[start, end]

    def _find_thinking_form(self, start: str, end: str) -> ThinkingForm:
        thought, answer = f"thought{self._nonce}", f"answer{self._nonce}"
        marked = f"{start}\n{thought}\n{end}\n\n{answer}"
        for key in (REASONING, THINKING) if (start, end) == HARMONY else (REASONING, "content", THINKING):
            message = {"role": "assistant", "content": answer} | {key: marked if key == "content" else thought}
            try:
                text = self.render([{"role": "user", "content": "x"}, message], False)
            except TemplateError:
                continue
            head, found, tail = text.partition(thought)
            before, opened, _ = head[::-1].partition(start[::-1])  # from the back
            after, closed, rest = tail.partition(end)
            gap, answered, _ = rest.partition(answer)
            if not (found and opened and closed and answered) or before.strip() or after.strip():
                continue
            if key == "content" and marked not in text:
                continue
            return ThinkingForm(key, before[::-1], after, "" if gap.strip() else gap)
        return ThinkingForm(None)

    def _seen(self, *, system: bool = False) -> bool | None:
        """Whether the words of a user, or of a system prompt, stand whole in a first prompt; None where the template
        refuses it."""
        other = f"other{self._nonce}"
        messages = [{"role": "system", "content": self._words}, {"role": "user", "content": other}]
        try:
            text = self.render(messages if system else [{"role": "user", "content": self._words}], True)
        except TemplateError:
            return None
        return self._words in text

    def _strftime(self, form: str) -> str:
        self.writes_date = True
        return datetime.combine(self._today, datetime.min.time()).strftime(form)


def as_parts(messages: Sequence[Message]) -> list[Message]:
    """`messages` whose content is a list of one part of text."""
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
