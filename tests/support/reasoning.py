"""Teachers that think, call tools or write in channels: for each a template in the shape of its family's, what such a
teacher writes, and the message that this is.

One small tokenizer has the control tokens of all of them. The templates are the tests' own; they read and write the
fields that the families' templates do (looked up in the stored templates of TRL, 2026-07).
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from stillhouse.stages.teacher import Answer
from tests.support.chat_families import byte_level

SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "[INST]", "[/INST]", "[THINK]", "[/THINK]"),
    *("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"),
    *("<|turn>", "<turn|>", "<|channel>", "<channel|>"),
    *("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
    *("<|python_tag|>", "<|eom_id|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
)
UNFLAGGED = ("<think>", "</think>", "<tool_call>", "</tool_call>")


@cache
def tokenizer(eos: str) -> Any:
    backend = byte_level()
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in SPECIAL])
    backend.add_tokens([AddedToken(text, normalized=False, special=False) for text in UNFLAGGED])
    copy = Tokenizer.from_str(backend.to_str())
    return PreTrainedTokenizerFast(tokenizer_object=copy, bos_token="<s>", eos_token=eos)


# The thinking comes under `reasoning_content`, or in the content; only after the last question.
QWEN3 = """\
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- set text = m.content %}{% set thought = '' %}
{%- if m.role == 'assistant' %}
{%- if m.reasoning_content is string %}{% set thought = m.reasoning_content %}
{%- elif '</think>' in text %}
{%- set thought = text.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
{%- set text = text.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{%- if loop.index0 > ns.last %}
{%- set text = '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + text.lstrip('\\n') %}
{%- endif %}
{%- endif %}
{{- '<|im_start|>' + m.role + '\\n' + text + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# The same, and its last line opens the thinking.
QWEN35 = QWEN3.replace("assistant\\n' }}{% endif %}", "assistant\\n<think>\\n' }}{% endif %}")

# Opens the thinking, and leaves it out of every answer.
DEEPSEEK = """\
{{- bos_token }}
{%- for m in messages %}
{%- if m.role == 'system' %}{{ m.content }}
{%- elif m.role == 'user' %}{{ '<｜User｜>' + m.content }}
{%- else %}{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"""

# Writes what it gets; opens the thinking.
PLAIN_OPENS = """\
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"""
PLAIN = PLAIN_OPENS.replace("<think>\\n", "")

HARMONY = """\
{{- '<|start|>system<|message|>Current date: ' + strftime_now('%Y-%m-%d') + '\\n# Valid channels<|end|>' }}
{%- for m in messages %}
{%- if m.role == 'system' %}{{ '<|start|>developer<|message|># Instructions\\n\\n' + m.content + '\\n\\n<|end|>' }}
{%- elif m.role == 'user' %}{{ '<|start|>user<|message|>' + m.content + '<|end|>' }}
{%- else %}
{%- if '<|channel|>final<|message|>' in m.content %}{{ raise_exception('no channel tags in content') }}{% endif %}
{%- if loop.last and not add_generation_prompt %}
{%- if 'thinking' in m %}
{{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}
{%- endif %}
{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|return|>' }}
{%- else %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}{% endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""

# Reads a string as it is, or blocks of text and thinking; the newer one makes such blocks of `reasoning_content`.
MAGISTRAL = """\
{{- bos_token }}
{%- for m in messages %}
{%- if m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}
{%- elif m.content is string %}{{ m.content + eos_token }}
{%- else %}{% for block in m.content %}
{{- block.text if block.type == 'text' else '[THINK]' + block.thinking + '[/THINK]' }}
{%- endfor %}{{ eos_token }}{% endif %}
{%- endfor %}"""
MINISTRAL = MAGISTRAL.replace(
    "{{ m.content + eos_token }}",
    "{% if m.get('reasoning_content') %}{{ '[THINK]' + m.reasoning_content + '[/THINK]' }}{% endif %}"
    "{{ m.content + eos_token }}",
)

GEMMA4 = """\
{%- for m in messages %}
{{- '<|turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' }}
{%- set thought = m.get('reasoning') or m.get('reasoning_content') %}
{%- if thought and loop.last %}{{ '<|channel>thought\\n' + thought + '\\n<channel|>' }}{% endif %}
{{- m.content + '<turn|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|turn>model\\n' }}{% endif %}"""

LLAMA31 = """\
{{- '<s><|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + strftime_now('%d %b %Y') + '<|eot_id|>' }}
{%- for m in messages %}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + (m.content | trim) + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""


@dataclass(frozen=True)
class Reasoner:
    """`writes` is what the teacher writes, its end of turn included; `content` and `reasoning` what its message holds,
    `differs` why that message, rendered, is not what it wrote."""

    name: str
    template: str
    writes: str
    content: str
    reasoning: str | None
    differs: str | None = None
    finish_reason: str = "stop"
    eos: str = "<|im_end|>"

    @property
    def tokenizer(self) -> Any:
        return tokenizer(self.eos)

    def __str__(self) -> str:
        return self.name


BLOCK = "<think>\nTwo and two.\n</think>\n\nFour.<|im_end|>"
OPENED = BLOCK.removeprefix("<think>\n")
FINAL = "<|start|>assistant<|channel|>final<|message|>Four.<|return|>"
ANALYSIS = "<|channel|>analysis<|message|>Two and two.<|end|>"
CALL = "<|start|>assistant to=functions.add<|channel|>commentary json<|message|>{}"
FOUR, THOUGHT = "Four.", "Two and two."
GPT_OSS: dict[str, Any] = {"eos": "<|return|>"}
R1: dict[str, Any] = {"eos": "<｜end▁of▁sentence｜>"}

REASONERS = [
    Reasoner("Qwen3", QWEN3, BLOCK, FOUR, THOUGHT),
    Reasoner("Qwen3, an empty block", QWEN3, "<think>\n\n</think>\n\nFour.<|im_end|>", FOUR, ""),
    Reasoner("Qwen3, no block", QWEN3, "Four.<|im_end|>", FOUR, None, "empty_thinking"),
    Reasoner("Qwen3, another end", QWEN3, BLOCK.replace("im_end", "endoftext"), FOUR, THOUGHT, "end_of_turn"),
    Reasoner("Qwen3, one line break", QWEN3, BLOCK.replace("\n\nF", "\nF"), "\nFour.", THOUGHT, "whitespace"),
    Reasoner("Qwen3, cut off", QWEN3, "<think>\nTwo and", "", "Two and", "cut_off", "length"),
    Reasoner("Qwen3.5, opens", QWEN35, OPENED, FOUR, THOUGHT),
    Reasoner("Qwen3.5, cut off", QWEN35, "Two and", "", "Two and", "cut_off", "length"),
    Reasoner("DeepSeek-R1, opens", DEEPSEEK, OPENED.replace("<|im_end|>", R1["eos"]), FOUR, THOUGHT,
             "thinking_left_out", **R1),
    Reasoner("ChatML, opens", PLAIN_OPENS, OPENED, "<think>\nTwo and two.\n</think>\n\nFour.", None),
    Reasoner("ChatML", PLAIN, BLOCK, "<think>\nTwo and two.\n</think>\n\nFour.", None),
    Reasoner("gpt-oss", HARMONY, ANALYSIS + FINAL, FOUR, THOUGHT, "named_thinking", **GPT_OSS),
    Reasoner("gpt-oss, no analysis", HARMONY, FINAL.removeprefix("<|start|>assistant"), FOUR, None, **GPT_OSS),
    Reasoner("gpt-oss, a tool", HARMONY, ANALYSIS + CALL + "<|call|>", CALL, THOUGHT, "text", **GPT_OSS),
    Reasoner("gpt-oss, a preamble", HARMONY, ANALYSIS + "<|start|>assistant<|channel|>commentary<|message|>Hm.<|end|>"
             + FINAL, "<|start|>assistant<|channel|>commentary<|message|>Hm.<|end|>" + FINAL.removesuffix("<|return|>"),
             THOUGHT, "refused", **GPT_OSS),
    Reasoner("gpt-oss, cut off", HARMONY, "<|channel|>analysis<|message|>Two and", "", "Two and", "cut_off", "length",
             **GPT_OSS),
    Reasoner("Magistral", MAGISTRAL, "[THINK]Two and two.[/THINK]Four.</s>", "[THINK]Two and two.[/THINK]Four.", None,
             eos="</s>"),
    Reasoner("Ministral 3", MINISTRAL, "[THINK]Two\n[/THINK]\nFour.</s>", "\nFour.", "Two\n", eos="</s>"),
    Reasoner("Gemma 4", GEMMA4, "<|channel>thought\nTwo and two.\n<channel|>Four.<turn|>", FOUR, THOUGHT,
             eos="<turn|>"),
    Reasoner("Llama 3.1, a tool", LLAMA31, "<|python_tag|>add(2, 2)<|eom_id|>", "<|python_tag|>add(2, 2)", None,
             "end_of_turn", eos="<|eom_id|>"),
    Reasoner("Hermes, a tool", PLAIN, "<tool_call>\n{}\n</tool_call><|im_end|>", "<tool_call>\n{}\n</tool_call>", None),
]  # fmt: skip


class Says:
    """A teacher that writes the given texts, one a turn, whatever it is asked."""

    vocab_size = 100_000
    broken = False
    last_token_at = 0.0

    def __init__(self, tokenizer: Any, texts: list[str], finish_reason: str = "stop") -> None:
        self.written = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        self.prompts: list[list[int]] = []
        self._finish_reason = finish_reason

    async def answer(self, prompt_ids: npt.NDArray[np.int32], request_id: str, seed: int, max_tokens: int) -> Answer:
        self.prompts.append(prompt_ids.tolist())
        ids = np.array(self.written[int(request_id.rpartition("/")[2])], dtype=np.int32)
        ids_SK = ids[:, None] + 1000 * np.arange(8, dtype=np.int32)
        logprobs_SK = np.log(np.tile(np.linspace(0.2, 0.01, 8, dtype=np.float32), (len(ids), 1)))
        return Answer(ids, ids_SK, logprobs_SK, logprobs_SK[:, 0], self._finish_reason)

    def shutdown(self) -> None:
        pass
