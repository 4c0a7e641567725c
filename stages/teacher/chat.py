"""The teacher's chat template, from messages to token ids, with two guarantees.

1. Prompts without control strings get exactly the ids of `apply_chat_template` (so exactly the BOS it writes).
2. Data cannot speak as control: a special-token string inside a message is encoded as plain text (`guard`).
"""

import contextlib
import functools
import secrets
from collections.abc import Sequence
from datetime import date
from typing import Any

import numpy as np

from stillhouse.schemas.config import Config
from stillhouse.stages.teacher import ControlTextError, TemplateError
from stillhouse.stages.teacher.guard import Guard, IntArray
from stillhouse.stages.teacher.pretrained import load_tokenizer
from stillhouse.stages.teacher.template import HARMONY_OPENING, Message, Template

MARKS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel>thought", "<channel|>"),
    ("<|STARTMARKS|>", "<|ENDMARKS|>"),
    ("<seed:think>", "</seed:think>"),
    ("<thought>", "</thought>"),
)
"""How templates spell a teacher's thinking: what opens it and what closes it. gpt-oss's is in `template.HARMONY`."""

_BATCH_CHARACTERS = 1 << 20
"""Encoded at once, which a tokenizer spreads over all cores: a token in an encoding takes some hundred bytes."""


class Chat:
    """A tokenizer with its chat template.

    `tokenizer` is a transformers fast tokenizer; raises `TemplateError` when it is not one, has no template, or has one
    that loses a user's words. `today` is the day that the template writes (by default this one). With `drops_thinking`
    the answers that are carried into the next turn hold no thinking, nor its opening.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str | None = None,
        template_kwargs: dict[str, Any] | None = None,
        *,
        drops_thinking: bool = False,
        today: date | None = None,
    ) -> None:
        from jinja2 import TemplateSyntaxError

        self.tokenizer = tokenizer
        try:
            text = str(template or tokenizer.get_chat_template())
        except ValueError:
            raise TemplateError(
                "teacher.model: its tokenizer has no chat template; choose an instruct model or set "
                "teacher.chat_template"
            ) from None
        self._drops_thinking = drops_thinking
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise TemplateError(
                f"teacher.model: its tokenizer ({type(tokenizer).__name__}) has no tokenizer.json form, which the "
                "guard against control tokens needs; convert it to a fast tokenizer"
            )
        self.template = text
        self.jinja = Template(tokenizer, text, template_kwargs or {}, today)
        nonce = secrets.token_hex(8)
        # Words that no template and no message holds.
        self._system, self._question = f"system{nonce}", f"question{nonce}"
        self._thought, self._answer = f"thought{nonce}", f"answer{nonce}"
        written = [text]
        for messages in (
            self._conversation(1),
            self._conversation(2),
            self._conversation(2, system_prompt=self._system),
        ):
            try:
                written.append(self.jinja.render(messages, True))
            except TemplateError as error:  # told where such a conversation is asked for
                if isinstance(error.__context__, TemplateSyntaxError):
                    raise
        self._guard = Guard(backend, "\n".join(written), tokenizer.unk_token, nonce)
        self.control_ids = self._guard.control_ids
        self._expected: dict[tuple[str, ...], list[str]] = {}
        self._rewrites: dict[bool, str | None] = {}
        for text in written[1:]:
            if not self._guard.reads_as_original(text):
                raise TemplateError(
                    "teacher.model: the guarded copy of its tokenizer does not read the chat template as the original "
                    "does; this tokenizer cannot be used safely"
                )

    def prompt_ids(self, messages: Sequence[Message], system_prompt: str | None = None) -> IntArray:
        """Token ids [T] int32 of `messages` and the opening of the assistant's turn. A system prompt is given here or
        as the first of `messages`.

        Raises `TemplateError` when the template refuses the conversation or a control token would come from data.
        """
        if system_prompt is not None:
            messages = [{"role": "system", "content": system_prompt}, *messages]
        return self._guard.encode(self.render(messages))

    def num_prompt_tokens(
        self,
        user_turns: Sequence[str],
        system_prompt: str | Sequence[str | None] | None = None,
        *,
        short: int = -1,
    ) -> list[int | None]:
        """The length in tokens of the prompt that each text makes as a first user turn; 0 where the template refuses
        it (generate refuses it too, with the reason). The system prompt is the same for all, or one for each. None
        where the prompt's bytes already tell that it has at most `short` tokens, which is much quicker."""
        alike = system_prompt is None or isinstance(system_prompt, str)
        systems = [system_prompt] * len(user_turns) if alike else [*(system_prompt or ())]
        lengths: list[int | None] = [0] * len(user_turns)
        batch: dict[int, str] = {}
        num_characters = 0
        for i, text in enumerate(user_turns):
            with contextlib.suppress(TemplateError):
                system = systems[i]
                before: list[Message] = [] if system is None else [{"role": "system", "content": str(system)}]
                messages = [*before, {"role": "user", "content": text}]
                if short >= 0 and self._is_short(messages, short):
                    lengths[i] = None
                else:
                    batch[i] = self.render(messages)
                    num_characters += len(batch[i])
            if i == len(user_turns) - 1 or num_characters > _BATCH_CHARACTERS:
                for j, length in zip(batch, self._guard.num_tokens([*batch.values()]), strict=True):
                    lengths[j] = length
                batch, num_characters = {}, 0
        return lengths

    def _is_short(self, messages: Sequence[Message], num_tokens: int) -> bool:
        """Whether the bytes of a prompt tell that it has at most so many tokens. Raises `TemplateError` when the
        template refuses it."""
        if any(self._guard.holds_control(message["content"]) for message in messages):
            return False
        most = self._guard.most_tokens(self.jinja.render(messages, True))
        return most is not None and most <= num_tokens

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The rendered conversation with control strings renamed where the template wrote them, and as they were where
        a message holds them. For the guard's copy of the tokenizer; nothing else understands the names.
        """
        for message in messages:
            self._guard.refuse_byte_names(message["content"])
        defused = [{**message, "content": self._guard.defuse(message["content"])} for message in messages]
        rendered = self.jinja.render(defused, add_generation_prompt)
        if any(message["role"] == "user" and message["content"].strip() not in rendered for message in defused):
            raise TemplateError("the chat template does not write the user's words as they are; the row is refused")
        return self._guard.disguise(rendered, self._belonging(messages, add_generation_prompt))

    def opened_thinking(self) -> str:
        """The opening of thinking that the template writes at the end of a first prompt; empty where it writes none."""
        prompt = self.jinja.render(self._conversation(1), True).rpartition(self._question)[2]
        return next((prompt[prompt.rindex(start) :] for start, _ in MARKS if prompt.rstrip().endswith(start)), "")

    @property
    def is_harmony(self) -> bool:
        """Whether the teacher opens its own channels, as gpt-oss does."""
        return self.jinja.render(self._conversation(1), True).endswith(HARMONY_OPENING)

    def next_turn_ids(self, user_turns: Sequence[str], system_prompt: str | None = None) -> IntArray:
        """Token ids [T] int32 between the teacher's last words and its next: the end of its turn, the newest of
        `user_turns`, and the opening of its next turn. The teacher's answers themselves are carried as ids, so their
        text is not needed; whitespace that the template would trim or put around them stays as the teacher wrote it.

        Raises `TemplateError` as `prompt_ids` does, and when the template rewrites earlier turns.
        """
        if len(user_turns) < 2:
            raise ValueError(f"next_turn_ids: {len(user_turns)} user turns; give all of them, two or more")
        rewrites = self.rewrites(system_prompt is not None)
        if rewrites is not None:
            raise TemplateError(
                f"{rewrites}, so the ids of earlier turns cannot be carried into the next; generate first turns only "
                "or set teacher.chat_template to one that keeps them"
            )
        messages = [{"role": "system", "content": system_prompt}] if system_prompt is not None else []
        for turn in user_turns:
            messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": self._answer}]
        return self._guard.encode(self.render(messages[:-1]).rpartition(self._answer)[2].lstrip())

    def answer_ids(self, text: str) -> IntArray:
        """Token ids [S] int32 of a given answer as the template writes it after the opening of the teacher's turn, up
        to the control token that ends the turn, which is the last of them.

        Raises `ControlTextError` when the answer spells a control string, and `TemplateError` when the template does
        not write it after the opening, changes its words, or ends it with text.
        """
        if self._guard.holds_control(text):
            raise ControlTextError("an answer spells a control string; the row is refused")
        asked = [{"role": "user", "content": self._question}]
        prompt = self.render(asked)
        whole = self.render([*asked, {"role": "assistant", "content": text}], False)
        written = whole[len(prompt) :]
        if not whole.startswith(prompt) or text.strip() not in written:
            raise TemplateError(
                "the chat template does not write a given answer, as it is, after the opening of a turn"
            )
        before, ids = self._guard.encode(prompt), self._guard.encode(whole)
        after = ids[len(before) :]
        if not np.array_equal(ids[: len(before)], before):  # its first characters and the opening make one token
            after = self._guard.encode(written)
            if self.tokenizer.decode([*before, *after]) != self.tokenizer.decode(ids):
                raise TemplateError(
                    "an answer cannot be told from the opening of its turn in tokens; the row is refused"
                )
        ends = np.flatnonzero(np.isin(after, self.end_of_turn_ids()))
        if not len(ends):
            raise TemplateError("the chat template ends an answer with text and not with a control token")
        return after[: ends[0] + 1]

    def rewrites(self, system_prompt: bool = False) -> str | None:
        """What the template does to earlier turns that keeps their ids from being carried over, in words; None when it
        leaves them as they are. Whitespace around answers does not count: see `next_turn_ids`.

        Raises `TemplateError` when the template refuses a first turn, or a system prompt when that is asked for.
        """
        if system_prompt not in self._rewrites:
            self._rewrites[system_prompt] = self._find_rewrite(self._system if system_prompt else None)
        return self._rewrites[system_prompt]

    def _find_rewrite(self, system_prompt: str | None) -> str | None:
        """`rewrites` by trial: two and three turns, answers with and without thinking."""
        opening = self.jinja.render(self._conversation(1, system_prompt), True).rpartition(self._question)[2]
        opened = [pair for pair in MARKS if opening.rstrip().endswith(pair[0])]
        thinking = [f"{start}\n{self._thought}\n{end}\n\n" for start, end in opened or MARKS]
        is_harmony = opening.endswith(HARMONY_OPENING)
        if is_harmony and not self._drops_thinking:
            return "the chat template strips the thinking from earlier answers"
        if self._drops_thinking:
            forms = [""]
        elif opened:
            forms = thinking  # the teacher cannot but think first
        elif any(end in opening for _, end in MARKS):
            forms = [""]  # it is told not to
        else:
            forms = ["", *thinking]
        for form in forms:
            for num_turns in (2, 3):
                before = self.jinja.render(self._conversation(num_turns - 1, system_prompt, form), True)
                if self._drops_thinking and opened:
                    before = before[: before.rindex(opened[0][0])]
                try:
                    after = self.jinja.render(self._conversation(num_turns, system_prompt, form), True)
                except TemplateError as error:
                    return f"the chat template refuses a conversation of {num_turns} turns ({error})"
                is_inside = bool(opened) and not self._drops_thinking
                change = self._change(before, after, form, is_inside, system_prompt is not None)
                if change is not None:
                    return f"the chat template {change}"
        return None

    def _change(self, before: str, after: str, form: str, opened: bool, has_system_prompt: bool) -> str | None:
        """What became of the rendered prompt `before` in `after`, one answer and one question later."""
        answers = before.count(self._answer) + 1
        if after.count(self._answer) < answers or after.count(self._question) <= before.count(self._question):
            return "leaves out earlier turns"
        if form and after.count(self._thought) < answers:
            return "strips the thinking from earlier answers"
        if after.startswith(before):
            lead, _, rest = after[len(before) :].partition(self._answer)
            if opened:
                form = form.split("\n", 1)[1]
            if before.endswith(HARMONY_OPENING):
                lead = lead.removeprefix("<|channel|>final<|message|>")  # which the teacher writes itself
            if "".join(lead.split()) != "".join(form.split()):
                return "writes text before an answer that the teacher was not shown"
            if self._guard.first_control_string(rest) is None:
                return "ends an answer with text and not with a control token"
            return None
        if has_system_prompt and after.find(self._system) > after.find(self._answer):
            return "moves the system prompt to the last user turn"
        if any(end in before[before.rfind(self._question) :] for _, end in MARKS) and not form:
            return "drops the empty thinking block before earlier answers"
        return "rewrites earlier turns"

    def _conversation(self, num_turns: int, system_prompt: str | None = None, form: str = "") -> list[dict[str, str]]:
        """Neutral messages up to the last of `num_turns` user turns; `form` goes before each answer."""
        messages = [{"role": "system", "content": system_prompt}] if system_prompt is not None else []
        for _ in range(num_turns):
            messages += [
                {"role": "user", "content": self._question},
                {"role": "assistant", "content": f"{form}{self._answer}"},
            ]
        return messages[:-1]

    def _belonging(self, messages: Sequence[Message], add_generation_prompt: bool) -> list[str]:
        """The control strings that the template writes for a conversation of this shape, in order."""
        # Templates may tell empty messages from others, and trim before they do.
        neutral = [
            {**message, "content": self._system if message["content"].strip() else message["content"][:1]}
            for message in messages
        ]
        shape = (*(f"{message['role']}:{message['content']}" for message in neutral), str(add_generation_prompt))
        if shape not in self._expected:
            text = self.jinja.render(neutral, add_generation_prompt)
            if neutral[0]["role"] == "system" and text.count(self._system) < sum(
                message["content"] == self._system for message in neutral
            ):
                raise TemplateError("the chat template leaves out a message of a conversation with a system prompt")
            self._expected[shape] = self._guard.control_strings(text)
        return self._expected[shape]

    def end_of_turn_ids(self) -> list[int]:
        """Ids that end the teacher's turn: the tokenizer's EOS and the control token the template writes after an
        assistant message."""
        return [*self._end_of_turn_ids]

    @functools.cached_property
    def _end_of_turn_ids(self) -> list[int]:
        ids = set()
        if self.tokenizer.eos_token_id is not None:
            ids.add(int(self.tokenizer.eos_token_id))
        conversation = [*self._conversation(1), {"role": "assistant", "content": self._answer}]
        after = self.jinja.render(conversation, False).rpartition(self._answer)[2]
        end = self._guard.first_control_string(after)
        if end is not None:
            ids.add(self.control_ids[end])
        return sorted(ids)


def load_chat(config: Config, today: date | None = None) -> Chat:
    """The `Chat` of the configured teacher on the day `today`; reads the tokenizer from its folder or the hub.

    Raises `TemplateError` when there is no tokenizer or no template. Code that comes with the model runs only where
    `teacher.engine` has `trust_remote_code`.
    """
    teacher = config.teacher
    try:
        tokenizer = load_tokenizer(teacher.model, teacher.revision, teacher.trust_remote_code)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TemplateError(
            f"teacher.model: no tokenizer at {teacher.model!r} ({reason}); check the name or folder"
        ) from None
    drops_thinking = config.generate.thinking == "drop"
    return Chat(
        tokenizer, teacher.chat_template, teacher.chat_template_kwargs, drops_thinking=drops_thinking, today=today
    )
