"""What `stillhouse inspect` answers, as JSON can hold it; docs/inspecting.md has every key."""

from dataclasses import dataclass
from typing import Any

from stillhouse.pipeline.look.inspect import samples
from stillhouse.pipeline.look.inspect.against import against
from stillhouse.pipeline.look.inspect.facts import facts
from stillhouse.pipeline.look.place import Place, open_place
from stillhouse.pipeline.look.tokens import teacher_tokenizer
from stillhouse.schemas.config import ConfigError


@dataclass(frozen=True)
class Asked:
    """The options of the command."""

    stage: str | None = None
    samples: int = 0
    seed: int = 0
    dropped: str | None = None
    row: str | None = None
    tokenizer: str | None = None
    against: str | None = None
    filters: bool = False


def inspect(path: str, asked: Asked | None = None) -> dict[str, Any]:
    """`facts` of a path, and under `samples`, `dropped`, `row`, `filters` and `against` what was asked for beside them.

    Raises `ConfigError` where there is nothing of the kind, `ShardError` where what is asked for is damaged.
    """
    asked = asked or Asked()
    place = open_place(path)
    found = facts(place, asked.stage)
    if asked.dropped is not None:
        found["dropped"] = samples.of_dropped(place, asked.dropped, asked.samples or 3, asked.seed)
    elif asked.samples and asked.against is None:
        found["samples"] = samples.at_random(place, _stage(place, asked), asked.samples, asked.seed)
    if asked.row is not None:
        tokenizer, note = teacher_tokenizer(place, asked.tokenizer)
        found["row"] = samples.walk(place, asked.row, tokenizer)
        found["notes"] += [note] if note else []
    if asked.filters:
        found["filters"] = _filters(place)
    if asked.against is not None:
        other = open_place(asked.against)
        found["against"] = against(place, found, other, facts(other, asked.stage), asked.samples, asked.seed)
    return found


def _filters(place: Place) -> list[dict[str, Any]]:
    from stillhouse.pipeline.look.filters import filters

    if not place.is_run:
        raise ConfigError(f"--filters: {place.path} is no run; what filters took is in its folder alone")
    return [one.to_json() for one in filters(place)]


def _stage(place: Place, asked: Asked) -> str:
    stage = asked.stage or place.last_stage
    if stage is None:
        raise ConfigError(f"--samples: {place.path} has no rows but a ledger's, which has no text; ask for --dropped")
    return stage
