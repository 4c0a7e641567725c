"""What an engine sends, watched on its way: how many tokens, when, and how full the engine is."""

import contextlib
import time
from typing import Any

from stillhouse.stages.teacher import Load


class Pulse:
    """What an engine has sent so far."""

    last_token_at = 0.0  # time.monotonic(); 0 before the first output
    num_tokens = 0  # of all answers, those under way included
    load = Load()


def watch_outputs(engine: Any) -> Pulse:
    """A `Pulse` that follows what `engine` (an `AsyncLLM`) sends: answers themselves come only when they are done."""
    pulse, processor = Pulse(), getattr(engine, "output_processor", None)
    process = getattr(processor, "process_outputs", None)
    if processor is not None and process is not None:

        def process_outputs(outputs: Any, *arguments: Any, **keywords: Any) -> Any:
            if outputs:
                pulse.last_token_at = time.monotonic()
                # An exception here would end every request of the engine; a count that stands still ends none.
                with contextlib.suppress(AttributeError, TypeError):
                    pulse.num_tokens += sum(len(output.new_token_ids) for output in outputs)
            return process(outputs, *arguments, **keywords)

        processor.process_outputs = process_outputs
    update = getattr(processor, "update_scheduler_stats", None)
    if processor is not None and update is not None:

        def update_scheduler_stats(stats: Any) -> None:
            with contextlib.suppress(AttributeError):  # of None as well, which comes with most outputs of some engines
                pulse.load = Load(stats.num_waiting_reqs, stats.kv_cache_usage)
            update(stats)

        processor.update_scheduler_stats = update_scheduler_stats
    return pulse


def silence(engine: Any) -> None:
    """Has an `AsyncLLM` that logs its statistics log none, and gather only what its scheduler counts: the front end's
    own take 9 us a token (vLLM 0.32) of the thread that feeds the engine."""
    engine.logger_manager.stat_loggers.clear()
    process = engine.output_processor.process_outputs

    def process_outputs(outputs: Any, timestamp: Any = None, iteration_stats: Any = None, **keywords: Any) -> Any:
        return process(outputs, timestamp, None, **keywords)

    engine.output_processor.process_outputs = process_outputs
