"""One small tokenizer and one template for each family of chat models, for tests.

The tokenizers are trained here, in a second, on a few sentences: their words mean nothing, their kind (model,
normalizer, pre-tokenizer, byte fallback, how and where special tokens are held) is the family's. Every one of them has
a post-processor that adds a BOS, so that a second BOS would show. The templates follow the families' documented turn
formats.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind it at all.",
    "Why is the sky blue? Because the air scatters short waves of light more than long ones.",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))\n",
    "You are a helpful assistant. Answer in one sentence, then stop. Today Date: 26 Jul 2024",
    "system user assistant model tool start end turn of header id im inst begin text think 0123456789",
    "naïve café, señor, über, 日本語のテキスト, Привет мир",
] * 4

WORDS = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
NEWLINES = ["\n" * n for n in range(2, 6)]

CHATML = """\
{%- if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{% endif %}
{%- for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

GEMMA = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('no system role here') }}{% endif %}
{%- for m in messages %}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('user and model take turns') }}{% endif %}
{{- '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n' }}
{{- m['content'] | trim }}{{ '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

# Gemma 3 and later put a system prompt at the head of the first user turn.
GEMMA3 = """\
{{- bos_token }}
{%- set ns = namespace(head='') %}
{%- if messages[0]['role'] == 'system' %}{% set ns.head = messages[0]['content'] + '\\n\\n' %}{% endif %}
{%- for m in messages if m['role'] != 'system' %}
{{- '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n' }}
{{- (ns.head if loop.first else '') + (m['content'] | trim) + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

LLAMA3 = """\
{{- bos_token }}
{%- if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}
{%- set given = messages[0]['role'] == 'system' %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date_string + '\\n\\n' }}
{{- (messages[0]['content'] | trim if given else '') + '<|eot_id|>' }}
{%- for m in (messages[1:] if given else messages) %}
{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + (m['content'] | trim) + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

TURNS_ALTERNATE = """\
{%- set talk = messages[1:] if messages[0]['role'] == 'system' else messages %}
{%- set head = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}
{%- for m in talk %}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns must alternate') }}{% endif %}
{%- endfor %}"""

# Mistral with tokens for [INST]; the system prompt goes with the first user turn or, in some releases, with the last.
MISTRAL = (
    TURNS_ALTERNATE
    + """\
{{- bos_token }}
{%- for m in talk %}
{%- if m['role'] == 'user' -%}
{{ '[INST] ' + (head + '\\n\\n' if head and loop.first else '') + m['content'] + '[/INST]' }}
{%- else %}{{ ' ' + m['content'] | trim + eos_token }}{% endif %}
{%- endfor %}"""
)
MISTRAL_LAST = MISTRAL.replace("loop.first", "loop.last")

# Llama 2: [INST] is made of plain words, every exchange has its own <s> ... </s>.
LLAMA2 = (
    TURNS_ALTERNATE
    + """\
{%- for m in talk %}
{%- if m['role'] == 'user' -%}
{{ bos_token + '[INST] ' + ('<<SYS>>\\n' + head + '\\n<</SYS>>\\n\\n' if head and loop.first else '') }}
{{- m['content'] | trim + ' [/INST]' }}
{%- else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}
{%- endfor %}"""
)

ZEPHYR = """\
{{- bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + eos_token + '\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"""


@dataclass(frozen=True, eq=False)
class Family:
    """`control` are the strings that data must not speak, `end` those that end a turn; `lead` and `trail` are what the
    template puts around an answer within its turn (the teacher writes them)."""

    name: str
    make: Callable[[], Any]
    template: str
    control: tuple[str, ...]
    end: tuple[str, ...]
    bos: str | None
    system: bool = True
    lead: str = ""
    trail: str = ""
    trims: bool = False
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def tokenizer(self) -> Any:
        return self.make()

    def __str__(self) -> str:
        return self.name


def wrapped(backend: Tokenizer, bos: str, **special: str) -> Any:
    """As transformers serves it, with a post-processor that puts `bos` first."""
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, backend.token_to_id(bos))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def byte_level(normalizer: Any = None, ignore_merges: bool = False) -> Tokenizer:
    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer is not None:
        backend.normalizer = normalizer
    split = pre_tokenizers.Split(WORDS, behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    )
    return backend


QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>")
QWEN_UNFLAGGED = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|repo_name|>")


@cache
def qwen() -> Any:
    backend = byte_level(normalizers.NFC())
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in QWEN_SPECIAL])
    backend.add_tokens([AddedToken(text, normalized=False, special=False) for text in QWEN_UNFLAGGED])
    return wrapped(backend, "<|endoftext|>", eos_token="<|im_end|>", pad_token="<|endoftext|>")


LLAMA3_SPECIAL = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"),
    *("<|python_tag|>", "<|reserved_special_token_0|>"),
)


@cache
def llama3() -> Any:
    backend = byte_level(ignore_merges=True)
    size = backend.get_vocab_size()
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in LLAMA3_SPECIAL])
    assert backend.token_to_id("<|begin_of_text|>") == size
    return wrapped(backend, "<|begin_of_text|>", bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>")


def sentencepiece_like(special: tuple[str, ...], unflagged: list[str], **parts: Any) -> Tokenizer:
    """BPE over characters with byte fallback, as converted from SentencePiece: special tokens, byte tokens and
    `unflagged` added tokens are entries of the vocabulary, and there are merges that spell a special token."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    for name, part in parts.items():
        setattr(backend, name, part)
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=[*special, *BYTES, *unflagged], show_progress=False, initial_alphabet=["<", ">"]
    )
    backend.train_from_iterator(CORPUS, trainer)
    spec = json.loads(backend.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] not in BYTES]
    for token in spec["added_tokens"]:
        token["special"] = token["content"] in special
    # "<", "u", "n", "k", ">" -> "<unk>" and the same for the end of a turn.
    for text in ("<unk>", special[-1]):
        left = text[0]
        for char in text[1:]:
            for piece in (left, char, left + char):
                spec["model"]["vocab"].setdefault(piece, len(spec["model"]["vocab"]))
            spec["model"]["merges"].append([left, char])
            left += char
    return Tokenizer.from_str(json.dumps(spec))


GEMMA_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>")


@cache
def gemma() -> Any:
    backend = sentencepiece_like(
        GEMMA_SPECIAL,
        [*NEWLINES, "▁▁", "▁▁▁▁", "<table>", "<unused0>"],
        normalizer=normalizers.Replace(" ", "▁"),
        pre_tokenizer=pre_tokenizers.Split(" ", behavior="merged_with_previous"),
        decoder=decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    )
    return wrapped(
        backend,
        "<bos>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token="<mask>",
    )


MISTRAL_SPECIAL = ("<unk>", "<s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "</s>")
LLAMA2_SPECIAL = ("<unk>", "<s>", "</s>")
STRIPPED = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)


@cache
def mistral() -> Any:
    backend = sentencepiece_like(
        MISTRAL_SPECIAL,
        [],
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
        decoder=STRIPPED,
    )
    return wrapped(backend, "<s>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@cache
def llama2() -> Any:
    backend = sentencepiece_like(
        LLAMA2_SPECIAL,
        [],
        normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        decoder=STRIPPED,
    )
    return wrapped(backend, "<s>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")


UNIGRAM_SPECIAL = ("<unk>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|folded|>")


def unigram(byte_fallback: bool) -> Any:
    """NFKC before everything, control tokens that are looked for in normalized text and that swallow whitespace, byte
    tokens and special tokens among the pieces."""
    characters = sorted({char for text in CORPUS for char in text if not char.isspace()} | set("<>|_[]/\\n▁#xABCDEF"))
    words = ["▁the", "▁dog", "ing", "▁is", "user", "assistant", "▁▁"]
    vocab = [(text, 0.0) for text in UNIGRAM_SPECIAL[:3]]
    vocab += [(text, 0.0) for text in BYTES if byte_fallback]
    vocab += [(char, -8.0 - rank / 1000) for rank, char in enumerate([*characters, "\n"])]
    vocab += [(word, -9.0) for word in words]
    backend = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=byte_fallback))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = STRIPPED
    backend.add_special_tokens(
        [AddedToken(text, normalized=True, special=True, rstrip=text == "<|user|>") for text in UNIGRAM_SPECIAL]
    )
    return wrapped(backend, "<s>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@cache
def unigram_bytes() -> Any:
    return unigram(byte_fallback=True)


@cache
def unigram_unknown() -> Any:
    return unigram(byte_fallback=False)


FAMILIES = [
    Family("chatml", qwen, CHATML, (*QWEN_SPECIAL, "<|fim_prefix|>", "<|repo_name|>"), ("<|im_end|>",), None),
    Family("gemma", gemma, GEMMA, GEMMA_SPECIAL, ("<eos>", "<end_of_turn>"), "<bos>", system=False, trims=True),
    Family("gemma3", gemma, GEMMA3, GEMMA_SPECIAL, ("<eos>", "<end_of_turn>"), "<bos>", trims=True),
    Family(
        "llama3", llama3, LLAMA3, LLAMA3_SPECIAL, ("<|end_of_text|>", "<|eot_id|>"), "<|begin_of_text|>", trims=True
    ),
    Family("mistral", mistral, MISTRAL, MISTRAL_SPECIAL, ("</s>",), "<s>", lead=" ", trims=True),
    Family("llama2", llama2, LLAMA2, LLAMA2_SPECIAL, ("</s>",), "<s>", lead=" ", trail=" ", trims=True),
    Family("zephyr", unigram_bytes, ZEPHYR, UNIGRAM_SPECIAL, ("</s>",), "<s>"),
    Family("zephyr-unk", unigram_unknown, ZEPHYR, UNIGRAM_SPECIAL, ("</s>",), "<s>"),
]
