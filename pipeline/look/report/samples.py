"""The conversations that the report shows: chosen over the whole data set, each small enough for a page."""

import json
from typing import Any

from stillhouse.pipeline.look.conversation import conversation
from stillhouse.pipeline.look.place import Place
from stillhouse.pipeline.look.report.rows import Rows

CONVERSATIONS = 30
MOST_BYTES = 100_000
"""Of a conversation as JSON; 30 of them and the plot library stay below 5 MB."""
ALTERNATIVES = (8, 5, 3)
"""How many of a token's are shown: fewer where a conversation would be larger than `MOST_BYTES`."""
TEXT_CHARACTERS = 10_000
"""Of a message."""


def samples(place: Place, rows: Rows, tokenizer: Any | None) -> list[dict[str, Any]]:
    """The conversations with the smallest hashes of their `sample_id`, in that order, as `look.conversation` gives
    them; "cut" says what was left out of one, or is null."""
    chosen = [rows.place(row) for row in rows.sample(CONVERSATIONS).tolist()]
    found = []
    for key, number in chosen:
        table = place.open(key).rows([number])
        for alternatives in ALTERNATIVES:
            one = conversation(table, 0, tokenizer, alternatives)
            if _num_bytes(one) <= MOST_BYTES:
                break
        found.append(_cut(one))
    return found


def _cut(one: dict[str, Any]) -> dict[str, Any]:
    cuts = []
    for message in one["messages"]:
        for name in ("content", "reasoning_content"):
            text = message[name]
            if text is not None and len(text) > TEXT_CHARACTERS:
                message[name] = f"{text[:TEXT_CHARACTERS]} […]"
                cuts.append(f"a text of {len(text):,} characters ends after {TEXT_CHARACTERS:,}")
    tokens = one["tokens"]
    T = len(tokens["ids"])
    while (size := _num_bytes(tokens)) > MOST_BYTES and len(tokens["ids"]) > 1:
        # The last ones, whole: what the teacher wrote is at the end.
        num_kept = max(1, len(tokens["ids"]) * MOST_BYTES // size)
        before = sum(tokens["supervised"][:-num_kept])
        for name in ("ids", "texts", "supervised"):
            tokens[name] = tokens[name][-num_kept:]
        for name in {"logprobs", "tails", "entropies", "alternatives", "draws", "ranks"} & {*tokens}:
            tokens[name] = tokens[name] and tokens[name][before:]
    if len(tokens["ids"]) < T:
        cuts.append(f"the first {T - len(tokens['ids']):,} of {T:,} tokens are left out")
    one["cut"] = "; ".join(dict.fromkeys(cuts)) or None
    return one


def _num_bytes(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass"))
