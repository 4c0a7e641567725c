"""The layouts of DistillKit against the published table. Its own codec and losses are in tests/trainers.

Shape legend: T tokens of a conversation, L the length that all are padded to.
"""

from typing import Any

import numpy as np
import pytest
import yaml

from stillhouse.schemas.targets import Kind
from stillhouse.stages.layouts import Settings, load_layout
from tests.support.datasets import DATASETS, V, published_table, width_of, with_next_token_targets


@pytest.mark.parametrize("layout", ["distillkit", "distillkit-compressed"])
@pytest.mark.parametrize("kind", ["target", "draw"])
@pytest.mark.parametrize("options", DATASETS)
def test_rectangles_hold_the_targets_of_the_next_token(options: dict[str, Any], kind: Kind, layout: str) -> None:
    table = published_table(**options)
    L, width = max(table.column("num_input_tokens").to_pylist()), width_of(table, kind)
    rows = load_layout(layout).convert(table, Settings(kind, V, width, L)).to_pylist()
    for row, (source, expected) in zip(rows, with_next_token_targets(table, kind), strict=True):
        T = len(source["input_ids"])
        assert row["input_ids"] == source["input_ids"] + [0] * (L - T)
        assert row["attention_mask"] == [1] * T + [0] * (L - T)
        # Its mask reads labels[j] for row j, and the model's own cross-entropy shifts the same labels.
        assert row["labels"] == [source["input_ids"][t] if t in expected else -100 for t in range(T)] + [-100] * (L - T)
        if layout == "distillkit":
            ids, logprobs = row["token_ids"], row["top_values"]
        else:
            logprobs = np.array(row["compressed_logprobs"], dtype=np.uint8).view("<f2").astype(float)
            ids = [unpacked(bytes(packed), 9, width) for packed in row["bytepacked_indices"]]
        assert len(ids) == len(logprobs) == L
        for t in range(L):
            assert len(ids[t]) == len(logprobs[t]) == width
            got = {i: lp for i, lp in zip(ids[t], logprobs[t], strict=True) if lp > -110}
            assert got == pytest.approx(expected.get(t, {}), abs=1e-5 if layout == "distillkit" else 4e-3)


def unpacked(data: bytes, bits: int, count: int) -> list[int]:
    """Integers of `bits` bits each, most significant bit first."""
    text = "".join(f"{byte:08b}" for byte in data)
    return [int(text[n * bits : (n + 1) * bits], 2) for n in range(count)]


def test_the_compressed_layout_brings_its_compressors_configuration() -> None:
    assert load_layout("distillkit").files is None
    files = load_layout("distillkit-compressed").files
    assert files is not None
    (name, data) = files(Settings("target", V, 8, 100)).popitem()
    assert name == "compression_config.yaml"
    config = yaml.safe_load(data)
    assert (config["d"], config["k"], config["exact_k"], config["residual_bins"]) == (V, 8, 8, [])
