"""Messages against ids, with the teacher's tokenizer and template: what was read is what the user said, what was
written is what the teacher said, and no control token comes from either.

Shape legend: T tokens of a conversation.
"""

import functools
import json
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt

from stillhouse.pipeline.dataset.checks.findings import RowError
from stillhouse.pipeline.dataset.manifest import tokenizer_digests
from stillhouse.pipeline.dataset.teachers import one_by_one
from stillhouse.schemas.config import Config, GenerateConfig, TeacherConfig
from stillhouse.schemas.lists import supervised_runs
from stillhouse.stages.teacher import TemplateError, chat
from stillhouse.stages.teacher.channels import Channels, without_end
from stillhouse.stages.teacher.thinking import Thinking


class Words:
    """The teacher's chat template and tokenizer, as a manifest describes them."""

    def __init__(self, of_run: chat.Chat, config: Config, stop_token_ids: list[int], max_tokens: int | None) -> None:
        self._chat, self._thinking = of_run, config.generate.thinking
        self._channels = Channels(of_run, config.generate.thinking_tokens)
        self._cut = Thinking(config.generate, of_run).cut if self._thinking == "drop" else None
        self._control_ids = set(of_run.control_ids.values())
        self._end_ids = {*of_run.end_of_turn_ids(), *stop_token_ids}
        self._max_tokens = max_tokens

    def check(self, row: dict[str, Any]) -> None:
        """Raises `RowError` where a row's messages and `input_ids` are not the same conversation. `row` is one of a
        published table, with as many runs of labels as the teacher has messages."""
        ids_T: npt.NDArray[np.int32] = row["input_ids"]
        messages, reasons = row["messages"], row["finish_reasons"]
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        questions = [message["content"] for message in messages if message["role"] == "user"]
        answers = [message for message in messages if message["role"] == "assistant"]
        starts, ends = (places.tolist() for places in supervised_runs(row["labels"]))
        done = 0
        for turn, answer in enumerate(answers):
            asked = self._asked(questions[: turn + 1], system, ids_T[:done])
            number = turn - (len(answers) - len(starts))  # earlier answers may have no labels (score.answers: last)
            start, end = (starts[number], ends[number]) if number >= 0 else self._unlearned(ids_T, done + len(asked))
            # Thinking that is kept without labels is the teacher's too.
            answer_start = done + len(asked) if self._thinking == "keep" else start
            self._compare(ids_T[done:answer_start], asked, turn, done)
            written = ids_T[answer_start:end].tolist()
            self._check_end(written, reasons[turn], is_last=turn == len(answers) - 1)
            text = without_end(written, reasons[turn], self._end_ids, self._control_ids)
            if self._channels.message(text, is_opened=self._thinking != "drop") != answer:
                raise RowError(f"the text of answer {turn + 1} in messages is not that of its ids")
            done = end
        if done != len(ids_T):
            raise RowError(f"{len(ids_T) - done} tokens follow its last answer")
        if self._channels.difference(messages, ids_T, reasons[-1]) != row["rendering_differs"]:
            raise RowError("rendering_differs is not what comparing messages with input_ids gives")

    def _unlearned(self, ids_T: npt.NDArray[np.int32], start: int) -> tuple[int, int]:
        """Where an answer without labels is, which begins at `start`: up to its end of turn."""
        ends = np.flatnonzero(np.isin(ids_T[start:], [*self._end_ids]))
        if not len(ends):
            raise RowError(f"an answer without labels, from token {start} on, has no end of turn")
        return start, start + int(ends[0]) + 1

    def _asked(self, questions: list[str], system: str | None, before: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """The ids of the template and the user after `before` [T], up to the teacher's next words."""
        try:
            if len(questions) == 1:
                head = [] if system is None else [{"role": "system", "content": system}]
                ids = self._chat.prompt_ids([*head, {"role": "user", "content": questions[0]}])
            else:
                ids = self._chat.next_turn_ids(questions, system)
                if len(ids) and ids[0] == before[-1]:
                    ids = ids[1:]  # the end of turn that the teacher wrote itself
        except TemplateError as error:
            raise RowError(f"its messages make no prompt: {error}") from None
        return ids if self._cut is None else self._cut(ids)

    def _compare(self, found: npt.NDArray[np.int32], asked: npt.NDArray[np.int32], turn: int, place: int) -> None:
        shared = min(len(found), len(asked))
        differs = np.flatnonzero(found[:shared] != asked[:shared])
        if not len(differs) and len(found) == len(asked):
            return
        at = int(differs[0]) if len(differs) else shared
        num_control, num_asked = (int(np.isin(ids, [*self._control_ids]).sum()) for ids in (found, asked))
        is_users = self._thinking != "keep"  # else thinking may have come in, which has its own
        if is_users and at < len(found) and int(found[at]) in self._control_ids and num_control > num_asked:
            raise RowError(f"token {place + at}, in what the user said, is a control token (id {found[at]})")
        raise RowError(
            f"the ids before answer {turn + 1} are not what the template makes of messages, from token {place + at} on "
            f"({len(found)} tokens, {len(asked)} expected)"
        )

    def _check_end(self, written: list[int], reason: str, *, is_last: bool) -> None:
        if not is_last:
            return  # in the middle the template's end of turn may have taken the teacher's place
        if reason in ("stop", "given") and written[-1] not in self._end_ids | self._control_ids:
            raise RowError(f"finish_reasons say {reason} of an answer without an end of turn")
        if reason == "length" and self._max_tokens and self._thinking != "drop" and len(written) != self._max_tokens:
            raise RowError(
                f"finish_reasons say length of an answer of {len(written)} tokens, which is {self._max_tokens} tokens"
            )


@functools.lru_cache(maxsize=16)
def _load(model: str | None, facts: str) -> tuple[Words | None, str]:
    manifest = json.loads(facts)
    config: dict[str, Any] = manifest["config"]
    made_with, day = manifest["teacher"], manifest["teacher"].get("chat_template_date")
    sections: dict[str, dict[str, Any]] = {"teacher": {}, "generate": {}}
    for key, value in config.items():
        section, _, name = key.partition(".")
        if section in sections:
            sections[section][name] = value
    if model is not None:
        sections["teacher"]["model"] = model
    # Code that comes with a model does not run because a manifest says so.
    sections["teacher"]["engine"] = {}
    not_made = "text against ids, control tokens and ends of turns were not checked: "
    if "model" not in sections["teacher"]:
        return None, f"{not_made}manifest.json names no teacher; give --teacher the folder of its tokenizer"
    if config.get("score.ids") == "source":
        return None, f"{not_made}the ids are the source's own, and no template of the teacher's wrote them"
    name = sections["teacher"]["model"]
    try:
        of_run = Config.model_construct(
            teacher=TeacherConfig(**sections["teacher"]), generate=GenerateConfig(**sections["generate"])
        )
        loaded = chat.load_chat(of_run, None if day is None else date.fromisoformat(day))
    except ValueError:
        return None, f"{not_made}no tokenizer at {name}; give --teacher the folder of the teacher's"
    if any(made_with.get(key, value) != value for key, value in tokenizer_digests(loaded).items()):
        return None, f"{not_made}the tokenizer or template at {name} is not the run's (tokenizer_sha256 and others)"
    limit = config.get("sampling.max_tokens")
    return Words(loaded, of_run, config.get("sampling.stop_token_ids", []), limit), ""


def load(manifest: dict[str, Any], model: str | None = None) -> tuple[dict[str | None, Words], list[str]]:
    """The words of a dataset's teacher, loaded once per process, from `model` (a folder or a hub name) or from where
    the run had it: of each of several by its name, else by None. And for each that has none a sentence on why."""
    words, reasons = dict[str | None, Words](), []
    for name, of_one in one_by_one(manifest).items():
        loaded, reason = _load(model, json.dumps(of_one, sort_keys=True))
        if loaded is not None:
            words[name] = loaded
        else:
            reasons.append(reason if name is None else f"rows of {name}: {reason}")
    return words, reasons
