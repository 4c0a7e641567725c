"""Tables as screen leaves them, made by hand."""

import pyarrow as pa

from stillhouse.pipeline.folder import open_folder
from stillhouse.pipeline.folder import shard as shards
from stillhouse.pipeline.folder.shard import ShardInfo
from stillhouse.schemas import tables
from stillhouse.schemas.config import Config, config_hash


def prompts(turns: list[list[str]]) -> pa.Table:
    n = len(turns)
    return pa.table(
        {
            "prompt_id": [f"p{i}" for i in range(n)],
            "user_turns": turns,
            "system_prompt": pa.nulls(n, pa.string()),
            "language": ["en"] * n,
            "redacted": [False] * n,
            "moderation_flagged": [False] * n,
            "num_prompt_tokens": pa.array([5] * n, pa.int32()),
            "source": ["s"] * n,
            "source_row": list(range(n)),
            "cluster_id": [f"p{i}" for i in range(n)],
            "cluster_size": pa.array([1] * n, pa.int32()),
            "prompt_scores": pa.array([{"profanity": 0.5}] * n, tables.scores_type(["profanity"])),
        }
    )


def numbered(numbers: list[int]) -> pa.Table:
    """A screened table with a prompt of its own for each number."""
    table = prompts([[f"question {number}"] for number in numbers])
    table = table.set_column(0, "prompt_id", pa.array([f"id-{number}" for number in numbers]))
    return table.set_column(table.schema.get_field_index("source_row"), "source_row", pa.array(numbers))


def put_screened(config: Config, name: str, table: pa.Table) -> None:
    info = ShardInfo("screen", name, config_hash(config), table.num_rows, table.num_rows)
    open_folder(config.run_dir).put_if_absent(f"screen/{name}", shards.encode(table, info))
