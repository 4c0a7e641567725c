"""What is found of personal information, and what dropping it would take."""

from typing import Any

import numpy as np

from stillhouse.pipeline.look.filters.entry import Filter, Setting, around
from stillhouse.pipeline.look.filters.rows import RowsRead
from stillhouse.stages.personal import PERSONAL, PLACEHOLDER

FINDS = (1, 2, 3, 5, 10)
OF = {"ingest": "prompts", "review": "answers"}


def personal(rows: RowsRead, stage: str, kinds: list[str], config: dict[str, Any]) -> list[Filter]:
    """`kinds` are the columns of counts. Rows that the stage dropped before it looked are not known of."""
    mode, least = config.get(f"personal.{OF[stage]}"), config.get("personal.drop_from", 1)
    if mode is None or not kinds:
        return []
    counts_KR = np.stack([rows.scores[kind] for kind in kinds])
    is_known_R = ~np.isnan(counts_KR).all(axis=0)
    is_other_K = np.array([kind != "placeholder" for kind in kinds], bool)
    finds_R = np.nan_to_num(counts_KR[is_other_K]).sum(axis=0)
    read, found = int(is_known_R.sum()), int((finds_R > 0).sum())
    tried = [(int(number), int((finds_R >= number).sum())) for number in around(least, FINDS)]
    others = [(other, 0) for other in ("mask", "keep") if other != "mask" or stage == "ingest"]
    taken = dict(tried)[least]
    settings = [
        Setting(f"personal.{OF[stage]}", mode, [*others, ("drop", taken)]),
        Setting("personal.drop_from", least, tried, "" if mode == "drop" else f"with personal.{OF[stage]}: drop"),
    ]
    entries = [Filter(stage, PERSONAL, PERSONAL, read, found, rows.dropped(PERSONAL), settings, PERSONAL)]
    if "placeholder" in kinds:
        dropped = rows.dropped(PLACEHOLDER)
        named = int((np.nan_to_num(rows.scores["placeholder"]) > 0).sum())
        number = named if stage == "review" else named + dropped
        setting = Setting("personal.placeholders", config.get("personal.placeholders"), [("keep", 0), ("drop", number)])
        entries.append(Filter(stage, PLACEHOLDER, PLACEHOLDER, read + dropped, number, dropped, [setting]))
    return entries
