"""vLLM's own classes where an engine's outputs are watched; `test_teacher` has an engine."""

from types import SimpleNamespace

from stillhouse.stages.teacher import Load
from stillhouse.stages.teacher.outputs import watch_outputs


def test_load_is_what_the_scheduler_counts() -> None:
    from vllm.v1.engine.output_processor import OutputProcessor
    from vllm.v1.metrics.stats import SchedulerStats

    engine = SimpleNamespace(output_processor=OutputProcessor(None, log_stats=True))
    pulse = watch_outputs(engine)
    assert pulse.load == Load(0, 0.0)
    engine.output_processor.update_scheduler_stats(SchedulerStats(num_waiting_reqs=3, kv_cache_usage=0.25))
    assert pulse.load == Load(3, 0.25)
    engine.output_processor.update_scheduler_stats(None)
    assert pulse.load == Load(3, 0.25)


def test_vllm_is_as_it_is_taken_to_be() -> None:
    """Names and places that `silence` and `watch_outputs` rely on: a change of vLLM's is to be seen here."""
    import inspect

    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.output_processor import OutputProcessor
    from vllm.v1.metrics.loggers import StatLoggerManager

    assert [*inspect.signature(OutputProcessor.process_outputs).parameters][1:4] == [
        "engine_core_outputs",
        "engine_core_timestamp",
        "iteration_stats",
    ]
    assert "for stat_logger in self.stat_loggers" in inspect.getsource(StatLoggerManager.record)
    handler = inspect.getsource(AsyncLLM._run_output_handler)
    assert "output_processor.update_scheduler_stats(outputs.scheduler_stats)" in handler
