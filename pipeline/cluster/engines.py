"""What keeps the engines of a run from starting on a cluster, or slows them: each rule reads the facts about one model
(`pipeline.models`) on the nodes that its workers may be on.
"""

from collections.abc import Iterator

from stillhouse.pipeline import models
from stillhouse.pipeline.cluster.named import Facts, Named, gigabytes, grouped
from stillhouse.pipeline.folder import keys
from stillhouse.pipeline.models import Model
from stillhouse.pipeline.run import placement
from stillhouse.schemas.config import OWN_BACKEND, Config, WorkersConfig, is_local_path, num_parallel

DEFAULT_GPU_SHARE = 0.92
"""vLLM 0.32's gpu_memory_utilization."""


class Seen:
    """A model of a run with one teacher, and what was found about it."""

    def __init__(self, run: Config, model: Model, facts: Facts, nodes: list[Facts]) -> None:
        self.run, self.model, self.teacher = run, model, model.teacher
        self.where, self.stage = model.where, model.stage
        self.workers: WorkersConfig = getattr(run.resources, model.stage)
        self.piece = placement.pieces(run, model.stage)[-1]
        """What its engine takes of a node, or of each of several."""
        self.footprint: Facts = facts.get("models", {}).get(self.where, {})
        """`Footprint` as JSON; empty where its files do not say."""
        self.nodes = [node | node.get("models", {}).get(self.where, {}) for node in nodes if self.may_be_on(node)]
        """Those that its workers may be on, with `has_model` and `is_cached` of this model."""

    def may_be_on(self, node: Facts) -> bool:
        return placement.has_room(node["resources"], self.piece)

    @property
    def is_own(self) -> bool:
        """Whether vLLM runs it."""
        return self.teacher.backend == OWN_BACKEND

    @property
    def num_gpus(self) -> int:
        """Of its engine."""
        return num_parallel(self.teacher.engine)

    @property
    def gpu_share(self) -> float:
        """Of a GPU's memory: the engine takes it as it starts."""
        return float(self.teacher.engine.get("gpu_memory_utilization", DEFAULT_GPU_SHARE))


def seen(config: Config, facts: Facts, nodes: list[Facts]) -> list[Seen]:
    """All models of a run with one teacher, on `nodes`, which have answered."""
    return [Seen(config, model, facts, nodes) for model in models.of(config)]


def problems(one: Seen, named: Named) -> Iterator[str]:
    """Why the engine of a model would not start."""
    for rule in (_files, _memory, _disk, _parallel):
        yield from rule(one, named)


def notes(one: Seen, named: Named) -> Iterator[str]:
    """What may be, or what is slow."""
    if not one.nodes:
        yield f"{one.stage}: no node that it fits on is up, so its vLLM, GPUs and memory were not looked at"
    yield from _cache(one)
    yield from _crossing(one, named)


def crowded(every: list[Seen]) -> Iterator[str]:
    """Guards of one worker, which start on the same GPU: vLLM refuses where its share of that is not free."""
    for stage in dict.fromkeys(one.stage for one in every):
        here = [one for one in every if one.stage == stage and one.is_own]
        total = sum(one.gpu_share for one in here)
        if len(here) > 1 and here[0].workers.num_gpus and round(total, 6) > 1:
            yield (
                f"resources.{stage}: the {len(here)} guards of a worker start on the same GPU, and their engines take "
                f"{total:.0%} of its memory; set engine.gpu_memory_utilization of each, so that together they are at "
                "most 1"
            )


def _files(one: Seen, named: Named) -> Iterator[str]:
    if lacking := [node for node in one.nodes if not node["has_model"]]:
        yield (
            f"{one.where}.model: {one.teacher.model} is no folder with a model on {named(lacking)}; put "
            "the weights where every node finds them, or name a hub id with its revision"
        )


def _parallel(one: Seen, named: Named) -> Iterator[str]:
    """A worker has the GPUs of its engine. One with guards may share a GPU, or have more for another of them."""
    num, asked, stage = one.num_gpus, one.workers.num_gpus, one.stage
    is_alone = stage in keys.TEACHERS
    if one.is_own and asked and (asked != num if is_alone else asked < num > 1):
        yield (
            f"resources.{stage}.num_gpus: {asked:g}, and an engine of {one.where}.engine uses {num} "
            f"(tensor_parallel_size x pipeline_parallel_size); set it to {num}"
        )


def _memory(one: Seen, named: Named) -> Iterator[str]:
    """Weights that do not fit: on a GPU, or in the machine where there are none."""
    where, weights = one.where, one.footprint.get("weight_bytes")
    if not weights or not one.is_own:
        return
    if one.workers.num_gpus:
        num, each = one.num_gpus, weights / one.num_gpus
        for found, bad in grouped(one.nodes, lambda node: min(node["gpus"], default=None)):
            if each > one.gpu_share * found:
                yield (
                    f"{where}: weights of {gigabytes(weights)} are {gigabytes(each)} for each of {num} GPUs, and those "
                    f"of {named(bad)} have {gigabytes(found)}, of which {one.gpu_share:.0%} are used; raise "
                    f"{where}.engine.tensor_parallel_size with resources.{one.stage}.num_gpus, or use larger GPUs"
                )
        return
    cache = float(one.teacher.env.get("VLLM_CPU_KVCACHE_SPACE") or 0) * 2**30
    for found, bad in grouped(one.nodes, lambda node: node["memory_bytes"]):
        if weights + cache > found:
            yield (
                f"{where}: weights of {gigabytes(weights)} and a cache of {gigabytes(cache)} (VLLM_CPU_KVCACHE_SPACE) "
                f"exceed the {gigabytes(found)} of memory of {named(bad)}; use a smaller model or cache, or larger "
                "nodes"
            )


def _disk(one: Seen, named: Named) -> Iterator[str]:
    """Weights from the hub, which each node fetches for itself."""
    size = one.footprint.get("file_bytes")
    if not size or is_local_path(one.teacher.model):
        return
    for free, bad in grouped(one.nodes, lambda node: None if node["is_cached"] else node["disk_free_bytes"]):
        if size > free:
            yield (
                f"{one.where}.model: {gigabytes(size)} of weights are to be fetched, and {named(bad)} has "
                f"{gigabytes(free)} free where they are kept; make room, or point HF_HOME to a larger disk"
            )


def _cache(one: Seen) -> Iterator[str]:
    """A cache that may be too small for one longest conversation; an upper bound, so no problem."""
    teacher, where = one.teacher, one.where
    weights, per_token = one.footprint.get("weight_bytes"), one.footprint.get("cache_bytes_per_token")
    gpus = [min(node["gpus"]) for node in one.nodes if node["gpus"]]
    if not weights or not per_token or not gpus or not one.workers.num_gpus:
        return
    each, cache = weights / one.num_gpus, per_token * teacher.max_model_len / one.num_gpus
    if each <= one.gpu_share * min(gpus) < each + cache:
        context = "teacher" if one.stage == "rollout" else where  # a student has the teacher's
        yield (
            f"{where}: beside {gigabytes(each)} of weights a GPU of {gigabytes(min(gpus))} may lack room for "
            f"the cache of one conversation of {context}.max_model_len {teacher.max_model_len} ({gigabytes(cache)}); "
            "lower it, or raise tensor_parallel_size"
        )


def _crossing(one: Seen, named: Named) -> Iterator[str]:
    """Nodes by whose GPUs a piece of an engine may come to lie on two of them."""
    each = one.piece.get("GPU", 0)
    odd = [node for node in one.nodes if each and node["resources"]["GPU"] % each]
    if odd and placement.is_spread(one.run, one.stage):
        yield (
            f"{one.where}.engine: the GPUs of {named(odd)} are no multiple of tensor_parallel_size {each:g}, so "
            "that tensor parallel may go across nodes, which is slow; use another size, or nodes for it"
        )
