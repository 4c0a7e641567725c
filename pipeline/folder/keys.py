"""Every path in a run folder, once. `<n>` is a shard such as 00017.

run.json                              whose run this is: the configuration and its hash
<stage>/<n>.parquet                   the rows of a stage
ledger/<stage>/<n>.parquet            the rows it dropped (a view of the shard's own metadata)
dataset/data/train-<n>-of-<N>.parquet what publish writes
dataset/manifest.json, README.md      written last: with the manifest a run is finished
report.html                           what the run came to, for people; holds prompts
state/partition.json                  how many shards there are
state/<stage>/sketches|assignments/   inputs of a stage that needs a view of the whole data set
state/set_aside/<stage>/<n>.json      a shard that failed too often
state/attempts/<run>/                 an empty file for each attempt under way, so that it counts if its worker dies
state/parts/generate/<n>.<lo>-<hi>.*  what is done of a shard that is made in parts, rows lo to hi of its source (of
                                      score too; rollout has its own)
state/index/<stage>.json              what finished shards say of themselves, for the next run
state/teacher.json                    facts about the teacher, for the manifest
state/timeline/<run>.parquet          when each shard was made, where, in how many attempts: a file for each `run`
state/now/<run>.json                  how far a run is that goes on, or that was killed
state/purged.json                     digests of ids that were purged and must not come back
state/purge.json                      a purge under way: what it has to do
state/staged/                         files that are being written
state/preflight/                      files by which nodes see whether they share the folder; gone when a run begins
state/damaged/<key>.<digest>          files that were not what a run wrote; nothing reads them
"""

RUN = "run.json"
PARTITION = "state/partition.json"
TEACHER = "state/teacher.json"
MANIFEST = "dataset/manifest.json"
CARD = "dataset/README.md"
REPORT = "report.html"
"""Not in `dataset/`, which is passed on: it quotes prompts."""
TASKS = ("generate", "score")
"""The stage that has the teacher, under either task."""
TEACHERS = ("generate", "rollout", "score")
"""Stages that have a teacher, or a student in its place: they make their rows anew, the others add columns."""
PARTS = "state/parts"
"""Of the shards of those."""
TIMELINE = "state/timeline"
NOW = "state/now"
PURGED = "state/purged.json"
PURGE = "state/purge.json"
DAMAGED = "state/damaged"
PREFLIGHT = "state/preflight"
STAGED = "state/staged"
"""Where files are written before they get their names: not beside those, because a killed writer leaves its file, and
`dataset/` is what people copy and upload."""

PUBLISH = "publish"
"""The stage whose shards are the dataset."""


def shard_name(number: int) -> str:
    return f"{number:05d}.parquet"


def shard_number(name: str) -> int | None:
    """The number of a shard; None of what is called otherwise and so is no shard."""
    number, dot, kind = name.partition(".")
    return int(number) if dot and kind == "parquet" and len(number) >= 5 and number.isdecimal() else None


def name(key: str) -> str:
    """The last part of a key."""
    return key.rpartition("/")[2]


def stage_folder(stage: str) -> str:
    """Where the shards of a stage are."""
    return "dataset/data" if stage == PUBLISH else stage


def stage_shard(stage: str, shard: str, num_shards: int) -> str:
    """A shard of a stage; of the published ones under Hugging Face's name of split `train`, part n of N."""
    if stage == PUBLISH:
        return f"dataset/data/train-{shard.removesuffix('.parquet')}-of-{num_shards:05d}.parquet"
    return f"{stage}/{shard}"


def published_shard(file: str) -> str:
    """The shard of a published file: the opposite of `stage_shard`."""
    return f"{file.rpartition('train-')[2].partition('-')[0]}.parquet"


def ledger(stage: str) -> str:
    return f"ledger/{stage}"


def ledger_shard(stage: str, shard: str) -> str:
    return f"ledger/{stage}/{shard}"


def sketches(stage: str) -> str:
    return f"state/{stage}/sketches"


def sketch(stage: str, shard: str) -> str:
    return f"state/{stage}/sketches/{shard}"


def assignments(stage: str) -> str:
    return f"state/{stage}/assignments"


def assignment(stage: str, shard: str) -> str:
    return f"state/{stage}/assignments/{shard}"


def set_aside_folder(stage: str) -> str:
    return f"state/set_aside/{stage}"


def set_aside(stage: str, shard: str) -> str:
    return f"state/set_aside/{stage}/{shard.removesuffix('.parquet')}.json"


def set_aside_shard(file: str) -> str:
    """The shard that a file of `set_aside_folder` is about."""
    return name(file).replace(".json", ".parquet")


def preflight(mark: str) -> str:
    return f"{PREFLIGHT}/{mark}"


def parts(stage: str) -> str:
    return f"{PARTS}/rollout" if stage == "rollout" else f"{PARTS}/generate"


def attempts(run_id: str) -> str:
    return f"state/attempts/{run_id}"


def index(stage: str) -> str:
    return f"state/index/{stage}.json"


def damaged_folder(stage: str) -> str:
    return f"{DAMAGED}/{stage_folder(stage)}"
