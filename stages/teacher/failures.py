"""Why an engine did not start: what its processes log, and one line of it.

vLLM's front end only says "Engine core initialization failed"; the reason is in a log record of a process that it
started.
"""

import contextlib
import json
import logging
import os
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import ValidationError


class FailureLog(logging.Handler):
    """Appends each exception that a process of vLLM logs to a file: its type and message, as a line of JSON."""

    def __init__(self, path: str) -> None:
        super().__init__(logging.ERROR)
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            # The folder is gone once the engine runs.
            with contextlib.suppress(FileNotFoundError), open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(start_failure(record.exc_info[1])) + "\n")


def start_failure(error: BaseException) -> str:
    """Type and message of the error with which a start failed, in one line of at most 500 characters.

    Pydantic's errors hold several messages: the first one counts. Not for later errors of an engine, whose messages
    can hold text of prompts.
    """
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        error = first.get("ctx", {}).get("error", ValueError(f"{first['loc']}: {first['msg']}"))
    line = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {line if len(line) <= 500 else line[:499] + '…'}"


def log_failures(vllm_config: Any, path: Path) -> None:
    """Add a `FailureLog` to the logging configuration of vLLM's processes, unless the user has one of their own or the
    processes are Ray's (they may be on machines that do not see `path`)."""
    from vllm.config.logging import LoggingConfig
    from vllm.logger import DEFAULT_LOGGING_CONFIG

    mine = vllm_config.logging_config
    if (
        mine.pylogging_config_file is not None
        or mine.formatter != "text"
        or not mine.configure_logging
        or vllm_config.parallel_config.distributed_executor_backend not in (None, "mp", "uni")
    ):
        return
    logging_config = deepcopy(DEFAULT_LOGGING_CONFIG)
    # What vLLM's module holds dates from its import, which may be before our settings.
    logging_config["handlers"]["vllm"].update(level=mine.log_level, stream=os.environ["VLLM_LOGGING_STREAM"])
    logging_config["handlers"]["failures"] = {"()": f"{__name__}.FailureLog", "path": str(path)}
    logging_config["loggers"]["vllm"].update(handlers=["vllm", "failures"], level=mine.log_level)
    file = path.with_name("logging.json")
    file.write_text(json.dumps(logging_config), encoding="utf-8")
    vllm_config.logging_config = LoggingConfig(log_level=mine.log_level, pylogging_config_file=str(file))
