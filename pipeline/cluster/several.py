"""The judgement about a cluster for each of several teachers."""

from stillhouse.pipeline.cluster.named import Facts
from stillhouse.pipeline.cluster.preflight import Judgement, judge
from stillhouse.schemas.config import Config


def judge_all(config: Config, facts: Facts) -> Judgement:
    """`judge` for a run of one teacher or of several: what is wrong for any of these, and for which where not for all.
    They take turns, so the plan's hours are those of all, each for its share of the rows that `check` has seen."""
    if config.teachers is None or "problem" in facts:
        return judge(config, facts)
    found = {name: judge(config.of_teacher(name), facts) for name in config.teacher_names}
    problems = dict.fromkeys(
        text if _is_clear(name, text, found) else f"teachers: of {name}: {text}"
        for name, judged in found.items()
        for text in judged.problems
    )
    plan = min((judged.plan for judged in found.values()), key=lambda plan: plan["replicas"])
    if "max_hours" in plan:
        rows = facts["check"].get("teachers", {})
        hours = {name: judged.plan["max_hours"] for name, judged in found.items()}
        total = None
        if None not in hours.values():
            share = {name: 1.0 if config.mixture else rows.get(name, 0) / max(sum(rows.values()), 1) for name in hours}
            total = round(sum(hours[name] * share[name] for name in hours), 2)
        plan = plan | {"max_hours": total}
    return Judgement([*problems], [*dict.fromkeys(text for one in found.values() for text in one.notes)], plan)


def _is_clear(name: str, text: str, found: dict[str, Judgement]) -> bool:
    """Whether a sentence names its teacher, or holds for all of them."""
    return text.startswith((f"teachers.{name}.", f"teachers.{name}:")) or all(
        text in one.problems for one in found.values()
    )
