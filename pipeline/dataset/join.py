"""`stillhouse join FOLDER`: a dataset without its prompts, and the source that has them, to the dataset it was.

Reads the source once, in its order, and holds the prompts of one group of files. Ids are rendered again by the same
tokenizer and template; a row that is not what it was is refused by its number in the source.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from stillhouse.pipeline.dataset.card import dataset_card
from stillhouse.pipeline.dataset.manifest import MANIFEST, open_dataset, read_published
from stillhouse.pipeline.dataset.origin import origin_chat, origin_config
from stillhouse.pipeline.dataset.seal import Chain, groups
from stillhouse.pipeline.dataset.target import CARD, STAGED, file_entry, finished, put_same, totals
from stillhouse.pipeline.dataset.withhold import ADDED, with_texts
from stillhouse.pipeline.errors import ShardError
from stillhouse.pipeline.folder import keys, open_folder, shard
from stillhouse.pipeline.folder.certified import encode_certified
from stillhouse.pipeline.folder.shard import ShardInfo
from stillhouse.schemas.config import Config, ConfigError
from stillhouse.schemas.lists import flat_lists, lists
from stillhouse.schemas.tables import MESSAGES
from stillhouse.stages.ingest import Ingest
from stillhouse.stages.sources import read_rows
from stillhouse.stages.teacher import TemplateError
from stillhouse.stages.teacher.guard import IntArray
from stillhouse.stages.teacher.prompts import Prompts, masked_places


def default_output(url: str) -> str:
    return f"{url.rstrip('/')}-joined"


def join(
    url: str, output: str, overrides: Sequence[str] = (), report: Callable[[str], None] = lambda message: None
) -> dict[str, Any]:
    """Makes the joined dataset in `output` and returns its manifest. `overrides` (`KEY=VALUE`) say where source and
    tokenizer are on this machine. `report` gets a line for each file.

    Raises `ConfigError` where there is nothing to join or the tokenizer is another one, `ShardError` where a row of the
    source is not what it was.
    """
    dataset, target = open_dataset(url), open_folder(output, staged=STAGED)
    manifest = dict(dataset.manifest)
    if "withheld" not in manifest:
        raise ConfigError(f"{url}: has its prompts; `stillhouse export --no-prompts` makes what can be joined")
    withheld = manifest.pop("withheld")
    identity = f"joined-{manifest['identity']}"
    if (there := finished(target, identity)) is not None:
        return there
    config = origin_config(manifest, overrides)
    prompts = Prompts(config.generate, origin_chat(config, manifest))
    source = _Source(config)
    files = []
    for group in groups(manifest["files"], manifest["config"]["sampling.n"]):
        chain = Chain(manifest["config_hash"])
        restored = []
        for file in group:
            table = read_published(dataset.folder, dataset.key(file), file["sha256"])
            restored.append((file, table, _restore(table, source, prompts, chain, withheld["system_prompts"])))
        for file, table, columns in restored:
            table = _unsealed(table, columns, chain)
            name = keys.published_shard(file["file"])
            tokens = shard.num_target_tokens(table)
            info = ShardInfo(keys.PUBLISH, name, manifest["config_hash"], table.num_rows, table.num_rows, tokens)
            data = shard.encode(table, info)
            put_same(target, file["file"], data)
            files.append(file_entry(file["file"], info, data))
            report(f"{file['file']}: {table.num_rows:,} rows")
    manifest |= totals(files) | {"identity": identity}
    target.put(CARD, dataset_card(config, manifest).encode())
    target.put(MANIFEST, encode_certified(manifest, indent=1))
    target.remove_staged()
    return manifest


class _Source:
    """The prompts of the source's rows, asked for in their order."""

    def __init__(self, config: Config) -> None:
        # Lengths decide which rows are refused; those asked for were not.
        tables = Ingest(config, lambda texts, *systems: [0] * len(texts))(read_rows(config.source))
        self._rows = (row for table in tables for row in table.to_pylist())
        self._row: dict[str, Any] = {"source_row": -1}

    def row(self, number: int) -> dict[str, Any]:
        """A row as ingest keeps it. Raises `ShardError` where it is refused now, or the source ends before it."""
        while self._row["source_row"] < number:
            following = next(self._rows, None)
            if following is None:
                raise ShardError(
                    f"source row {number}: the source ends at row {self._row['source_row']}; give the source that the "
                    "dataset was made from (--set source.path=… or its revision)"
                )
            self._row = following
        if self._row["source_row"] != number or self._row["drop_reason"] is not None:
            raise _changed(f"source row {number}", self._row["drop_reason"] or "it comes before rows asked for earlier")
        return self._row


def _changed(where: str, why: str) -> ShardError:
    return ShardError(
        f"{where}: is not the row that the answers were made for ({why}); restore the source, give the revision that "
        "manifest.json names or, where it masked prompts, the versions of libraries that it names"
    )


def _restore(table: pa.Table, source: _Source, prompts: Prompts, chain: Chain, of_system: bool) -> dict[str, pa.Array]:
    """The columns `messages` and `input_ids` of a file, each row checked."""
    masked = flat_lists(table.column("input_ids"))
    ids, offsets = masked.values.to_numpy().copy(), masked.offsets.to_numpy()
    messages = []
    for i, row in enumerate(table.select(["source_row", "messages", "prompt_tag"]).to_pylist()):
        number = row["source_row"]
        turns, system = _texts(row["messages"], source.row(number), of_system)
        filled = _fill(ids[offsets[i] : offsets[i + 1]], prompts, turns, system, number)
        texts = [system, *turns] if of_system and system is not None else turns
        if chain.add(number, texts, filled) != row["prompt_tag"]:
            before = ", ".join(map(str, chain.source_rows[:-1]))
            where = f"source row {number}" + (f", or one of {before}" if chain.num_tags == 1 else "")
            raise _changed(where, "its digest is another one")
        messages.append(with_texts(row["messages"], texts, of_system=of_system))
    return {"messages": pa.array(messages, MESSAGES), "input_ids": lists(offsets, pa.array(ids))}


def _texts(messages: list[dict[str, Any]], found: dict[str, Any], of_system: bool) -> tuple[list[str], str | None]:
    """The user turns and the system prompt of a conversation."""
    where = f"source row {found['source_row']}"
    own = next((message["content"] for message in messages if message["role"] == "system"), None)
    has_system = any(message["role"] == "system" for message in messages)
    if of_system and has_system != (found["system_prompt"] is not None):
        raise _changed(where, "its system prompt has come or gone")
    num_turns = sum(message["role"] == "user" for message in messages)
    if len(found["user_turns"]) < num_turns:
        raise _changed(where, f"it has {len(found['user_turns'])} user turns, not {num_turns}")
    return found["user_turns"][:num_turns], found["system_prompt"] if of_system else own


def _fill(ids_T: IntArray, prompts: Prompts, turns: list[str], system: str | None, number: int) -> list[bytes]:
    """Puts prompts into the masked places of `ids_T`, and returns them."""
    where = f"source row {number}"
    try:
        rendered = prompts.ids(turns, system)
    except TemplateError as error:
        raise _changed(where, str(error)) from None
    places = masked_places(ids_T)
    if len(places) != len(rendered):
        raise _changed(where, f"{len(rendered)} prompts for {len(places)} places")
    for place, prompt in zip(places, rendered, strict=True):
        length = place.stop - place.start
        # Of a later prompt the first id may be the end of turn that the teacher has written.
        if length not in (len(prompt), len(prompt) - 1) or (place.start == 0 and length != len(prompt)):
            raise _changed(where, f"a prompt has {len(prompt)} tokens for {length} places")
        ids_T[place] = prompt[len(prompt) - length :]
    return [ids_T[place].tobytes() for place in places]


def _unsealed(table: pa.Table, columns: dict[str, pa.Array], chain: Chain) -> pa.Table:
    """A file as it was, with restored `columns`."""
    names, sealed = table.column("sample_id").to_pylist(), table.column("sealed").to_pylist()
    rows = [{} if data is None else chain.unseal(name, data) for name, data in zip(names, sealed, strict=True)]
    kinds = {name: table.schema.field(name).type for name in (rows[0] if rows else ())}
    columns = columns | {name: pa.array([row[name] for row in rows], kind) for name, kind in kinds.items()}
    for name, column in columns.items():
        table = table.set_column(table.column_names.index(name), table.schema.field(name), column)
    return table.drop_columns([field.name for field in ADDED])
