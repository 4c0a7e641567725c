"""An engine's outputs are counted on their way, and nothing of them is lost."""

from types import SimpleNamespace
from typing import Any

from stillhouse.stages.teacher.outputs import silence, watch_outputs


def test_tokens_are_counted_as_they_come_and_counting_never_fails() -> None:
    seen: list[Any] = []
    engine = SimpleNamespace(output_processor=SimpleNamespace(process_outputs=lambda *a, **k: seen.append((a, k))))
    pulse = watch_outputs(engine)
    process = engine.output_processor.process_outputs
    process([])
    assert (pulse.num_tokens, pulse.last_token_at) == (0, 0.0)
    process(
        [SimpleNamespace(new_token_ids=[1, 2]), SimpleNamespace(new_token_ids=[]), SimpleNamespace(new_token_ids=[3])]
    )
    assert pulse.num_tokens == 3
    assert pulse.last_token_at > 0
    process([SimpleNamespace(new_token_ids=[4])], 1.0, iteration_stats=None)
    for unknown in ([SimpleNamespace()], [SimpleNamespace(new_token_ids=None)], "outputs", 7):
        process(unknown)
    assert pulse.num_tokens == 4
    assert seen[2] == (([SimpleNamespace(new_token_ids=[4])], 1.0), {"iteration_stats": None})
    assert len(seen) == 7, "every output is passed on"
    assert watch_outputs(SimpleNamespace()).num_tokens == 0


def test_silent_engine_gathers_nothing_for_each_token() -> None:
    seen: list[Any] = []

    def process(*arguments: Any, **keywords: Any) -> str:
        seen.append((arguments, keywords))
        return "processed"

    engine = SimpleNamespace(
        output_processor=SimpleNamespace(process_outputs=process),
        logger_manager=SimpleNamespace(stat_loggers=["prometheus"]),
    )
    silence(engine)
    assert engine.output_processor.process_outputs([1], 2.0, "statistics", weight_version="0") == "processed"
    assert seen == [(([1], 2.0, None), {"weight_version": "0"})]
    assert engine.logger_manager.stat_loggers == []
