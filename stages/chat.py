"""The teacher's chat template, from messages to token ids, with two guarantees.

1. Prompts without control strings get exactly the ids of `apply_chat_template` (so exactly the BOS it writes).
2. Data cannot speak as control: a special-token string inside a message is encoded as plain text.

How: inside messages every control string is first replaced by a placeholder, so that in the rendered text control
strings come from the template alone. Those are renamed to unguessable names, the placeholders are put back, and the
text is encoded in one call by a copy of the tokenizer in which the control tokens carry the new names and the old ids.
Encoding stays one call over the whole text, so whitespace, prefix and merge rules act as they do in the original.

Control strings are the tokenizer's special tokens, and of its other added tokens those shaped `<|...|>` and those with
punctuation that the template itself writes (`<think>` and the like are often not flagged special). Other added tokens,
such as Gemma's runs of newlines, are text. A template that marks turns with plain words (Llama 2's `[INST]`) has no
token there for anyone to guard: data that spells the words gets the same ids, as it does everywhere else.

Leaf module: imports no stage. Measured against transformers 5.19, tokenizers 0.23.
"""

import contextlib
import json
import re
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from stillhouse.schemas.config import Config

Message = dict[str, str]
IntArray = npt.NDArray[np.int32]

# Not text in any script: the first two characters of a plane reserved for private use. A message that holds them is
# treated like one that holds a control string.
_MARK = "\U0010fffd\U0010fffc"

# How templates spell a teacher's thinking: what opens it and what closes it.
_THINKING = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<|channel>thought", "<channel|>"))

_BYTE_NAME = re.compile("<0x[0-9A-F]{2}>")
_BATCH_CHARACTERS = 1 << 20
"""Encoded at once, which a tokenizer spreads over all cores: a token in an encoding takes some hundred bytes."""


class TemplateError(ValueError):
    """A template or tokenizer that cannot be used, or that refuses a conversation; the message says why."""


class Chat:
    """A tokenizer with its chat template.

    `tokenizer` is a transformers fast tokenizer; raises `TemplateError` when it is not one or has no template.
    With `drops_thinking` the answers that are carried into the next turn hold no thinking, nor its opening.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str | None = None,
        template_kwargs: dict[str, Any] | None = None,
        *,
        drops_thinking: bool = False,
    ) -> None:
        from jinja2 import TemplateSyntaxError

        self.tokenizer = tokenizer
        try:
            self.template: str | None = template or tokenizer.get_chat_template()
        except ValueError:
            raise TemplateError(
                "teacher.model: its tokenizer has no chat template; choose an instruct model or set "
                "teacher.chat_template"
            ) from None
        self.template_kwargs = template_kwargs or {}
        self._drops_thinking = drops_thinking
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise TemplateError(
                f"teacher.model: its tokenizer ({type(tokenizer).__name__}) has no tokenizer.json form, which the "
                "guard against control tokens needs; convert it to a fast tokenizer"
            )
        nonce = secrets.token_hex(8)
        # Words that no template and no message holds.
        self._system, self._question = f"system{nonce}", f"question{nonce}"
        self._thought, self._answer = f"thought{nonce}", f"answer{nonce}"
        written = [str(self.template)]
        for messages in (
            self._conversation(1),
            self._conversation(2),
            self._conversation(2, system_prompt=self._system),
        ):
            try:
                written.append(self._template(messages, True))
            except TemplateError as error:  # told where such a conversation is asked for
                if isinstance(error.__context__, TemplateSyntaxError):
                    raise
        spec = json.loads(backend.to_str())
        self.control_ids: dict[str, int] = {
            token["content"]: token["id"] for token in spec["added_tokens"] if _is_control(token, "\n".join(written))
        }
        self._strings = [_MARK, *self.control_ids]
        self._control = _any_of(self._strings)
        self._placeholder = re.compile(re.escape(_MARK) + "([0-9]+)" + re.escape(_MARK))
        self._index = {text: i for i, text in enumerate(self._strings)}
        self._renamed = {text: f"{_MARK}{nonce}:{i}{_MARK}" for i, text in enumerate(self.control_ids)}
        self._name = re.compile(f"{nonce}:([0-9]+)")
        self._encoder = _renamed_tokenizer(spec, self.control_ids, self._renamed)
        unknown = tokenizer.unk_token  # its id is also what characters outside the vocabulary become
        self._counted = np.zeros(1 + max(self.control_ids.values(), default=0), dtype=np.bool_)
        self._counted[[index for text, index in self.control_ids.items() if text != unknown]] = True
        self._uncounted = next((i for i, text in enumerate(self.control_ids) if text == unknown), None)
        self._speaks_bytes = _speaks_bytes(self._encoder)
        self._expected: dict[tuple[str, ...], list[str]] = {}
        self._rewrites: dict[bool, str | None] = {}
        for text in written[1:]:
            guarded = self._control.sub(lambda match: self._renamed.get(match.group(), ""), text)
            if (
                self._encoder.encode(guarded, add_special_tokens=False).ids
                != backend.encode(text, add_special_tokens=False).ids
            ):
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
        return self.encode(self.render(messages))

    def num_prompt_tokens(self, user_turns: Sequence[str], system_prompt: str | None = None) -> list[int]:
        """Length in tokens of the prompt that each text makes as a first user turn; 0 where the template refuses it,
        which generate will say again with its reason."""
        system: list[Message] = [{"role": "system", "content": system_prompt}] if system_prompt is not None else []
        lengths = [0] * len(user_turns)
        batch: dict[int, str] = {}
        num_characters = 0
        for i, text in enumerate(user_turns):
            with contextlib.suppress(TemplateError):
                batch[i] = self.render([*system, {"role": "user", "content": text}])
                num_characters += len(batch[i])
            if i == len(user_turns) - 1 or num_characters > _BATCH_CHARACTERS:
                encodings = self._encoder.encode_batch_fast(list(batch.values()), add_special_tokens=False)
                for (j, rendered), encoding in zip(batch.items(), encodings, strict=True):
                    with contextlib.suppress(TemplateError):
                        lengths[j] = len(self._checked(encoding.ids, rendered))
                batch, num_characters = {}, 0
        return lengths

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The rendered conversation, control strings renamed where the template wrote them and as they were where a
        message holds them. For `encode`; nothing else understands the names.
        """
        if self._speaks_bytes and any(self._names_byte(message["content"]) for message in messages):
            raise TemplateError(
                "a message spells the name of a byte token, which this tokenizer would read as the byte; the row is "
                "refused"
            )
        defused = [{**message, "content": self._control.sub(self._defuse, message["content"])} for message in messages]
        text = self._template(defused, add_generation_prompt)
        pieces = self._placeholder.split(text)  # template and plain text, then an index into self._strings, in turn
        written = [string for piece in pieces[::2] for string in self._control.findall(piece)]
        # A control string can still arise where data meets template text; neutral messages show which ones belong.
        if written != self._belonging(messages, add_generation_prompt):
            raise TemplateError("a control token would arise where a message meets the template; the row is refused")
        for i in range(0, len(pieces), 2):
            pieces[i] = self._control.sub(lambda match: self._renamed[match.group()], pieces[i])
        for i in range(1, len(pieces), 2):
            pieces[i] = self._strings[int(pieces[i])]
        return "".join(pieces)

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
        return self.encode(self.render(messages[:-1]).rpartition(self._answer)[2].lstrip())

    def rewrites(self, system_prompt: bool = False) -> str | None:
        """What the template does to earlier turns that keeps their ids from being carried, in words; None when it
        leaves them as they were read and written. Whitespace around answers does not count: see `next_turn_ids`.

        Raises `TemplateError` when the template refuses a first turn, or a system prompt when that is asked for.
        """
        if system_prompt not in self._rewrites:
            self._rewrites[system_prompt] = self._find_rewrite(self._system if system_prompt else None)
        return self._rewrites[system_prompt]

    def _find_rewrite(self, system_prompt: str | None) -> str | None:
        """`rewrites` by trial: two and three turns, answers with and without thinking."""
        opening = self._template(self._conversation(1, system_prompt), True).rpartition(self._question)[2]
        opened = [pair for pair in _THINKING if opening.rstrip().endswith(pair[0])]
        thinking = [f"{start}\n{self._thought}\n{end}\n\n" for start, end in opened or _THINKING]
        if self._drops_thinking:
            forms = [""]
        elif opened:
            forms = thinking  # the teacher cannot but think first
        elif any(end in opening for _, end in _THINKING):
            forms = [""]  # it is told not to
        else:
            forms = ["", *thinking]
        for form in forms:
            for num_turns in (2, 3):
                before = self._template(self._conversation(num_turns - 1, system_prompt, form), True)
                if self._drops_thinking and opened:
                    before = before[: before.rindex(opened[0][0])]
                try:
                    after = self._template(self._conversation(num_turns, system_prompt, form), True)
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
            if "".join(lead.split()) != "".join(form.split()):
                return "writes text before an answer that the teacher was not shown"
            match = self._control.match(rest.lstrip())
            if match is None or match.group() not in self.control_ids:
                return "ends an answer with text and not with a control token"
            return None
        if has_system_prompt and after.find(self._system) > after.find(self._answer):
            return "moves the system prompt to the last user turn"
        if any(end in before[before.rfind(self._question) :] for _, end in _THINKING) and not form:
            return "drops the empty thinking block before earlier answers"
        return "rewrites earlier turns"

    def _conversation(self, num_turns: int, system_prompt: str | None = None, form: str = "") -> list[Message]:
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
            text = self._template(neutral, add_generation_prompt)
            if neutral[0]["role"] == "system" and text.count(self._system) < sum(
                message["content"] == self._system for message in neutral
            ):
                raise TemplateError("the chat template leaves out a message of a conversation with a system prompt")
            self._expected[shape] = self._control.findall(text)
        return self._expected[shape]

    def _names_byte(self, text: str) -> bool:
        normalizer = self._encoder.normalizer
        return _BYTE_NAME.search(text if normalizer is None else normalizer.normalize_str(text)) is not None

    def encode(self, rendered: str) -> IntArray:
        """Token ids [T] int32 of what `render` returned.

        Raises `TemplateError` when the control tokens among them are not as many as the template wrote.
        """
        return self._checked(self._encoder.encode(rendered, add_special_tokens=False).ids, rendered)

    def _checked(self, encoded: list[int], rendered: str) -> IntArray:
        ids = np.asarray(encoded, dtype=np.int32)
        num_written = sum(int(number) != self._uncounted for number in self._name.findall(rendered))
        if np.count_nonzero(self._counted[ids[ids < len(self._counted)]]) != num_written:
            raise TemplateError("the tokenizer adds or loses control tokens of the template; the row is refused")
        return ids

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
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # Raised inside the template; its words may quote a message.
            raise TemplateError(f"the chat template fails on the conversation: {type(error).__name__}") from None

    def end_of_turn_ids(self) -> list[int]:
        """Ids that end the teacher's turn: the tokenizer's EOS and the control token the template writes after an
        assistant message."""
        ids = set()
        if self.tokenizer.eos_token_id is not None:
            ids.add(int(self.tokenizer.eos_token_id))
        conversation = [*self._conversation(1), {"role": "assistant", "content": self._answer}]
        after = self._template(conversation, False).rpartition(self._answer)[2]
        match = self._control.match(after.lstrip())
        if match is not None and match.group() in self.control_ids:
            ids.add(self.control_ids[match.group()])
        return sorted(ids)


def _is_control(token: dict[str, Any], written: str) -> bool:
    """Whether an entry of tokenizer.json's `added_tokens` is a control token; `written` is what the template writes."""
    text = token["content"]
    if token["special"] or re.fullmatch(r"<[|｜].+[|｜]>", text):
        return True
    return text in written and any(not char.isalnum() and not char.isspace() for char in text)


def _any_of(strings: Sequence[str]) -> re.Pattern[str]:
    """A pattern for the leftmost and there longest of `strings`, as a tokenizer looks for added tokens; thousands of
    them (Gemma has them) cost no more than a few."""
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
    """The `tokenizers.Tokenizer` of a tokenizer.json, which is used up, in which control tokens have other names and
    the same ids."""
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


def load_chat(config: Config) -> Chat:
    """The `Chat` of the configured teacher; reads the tokenizer from its folder or the hub.

    Raises `TemplateError` when there is no tokenizer or no template. Code that comes with the model runs only where
    `teacher.engine` has `trust_remote_code`.
    """
    from transformers import AutoTokenizer

    teacher = config.teacher
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            teacher.model, revision=teacher.revision, trust_remote_code=teacher.trust_remote_code
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TemplateError(
            f"teacher.model: no tokenizer at {teacher.model!r} ({reason}); check the name or folder"
        ) from None
    drops_thinking = config.generate.thinking == "drop"
    return Chat(tokenizer, teacher.chat_template, teacher.chat_template_kwargs, drops_thinking=drops_thinking)
