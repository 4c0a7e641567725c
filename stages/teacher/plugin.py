"""vLLM's plugin of ours (entry point `vllm.general_plugins`): an engine ends with the process that started it.

Every process of vLLM in the environment imports this module, those of engines that are not ours included: it imports
the standard library only.
"""

import multiprocessing
import os
import threading
import time

ENGINE_MARK = "STILLHOUSE_ENGINE"
"""Environment variable by which a process of vLLM knows that a `VLLMTeacher` started it."""


def end_with_parent() -> None:
    """Called in each process of an engine: end it when the one that started it is gone.

    vLLM's engine outlives a front end that was killed, and keeps the GPU's memory from the next one. In processes that
    are not of an engine of ours, nothing happens.
    """
    parent = multiprocessing.parent_process()
    if ENGINE_MARK not in os.environ or parent is None:
        return

    # A server process may have forked this one for its parent: then these are two, and either's end is the end.
    forked_by = os.getppid()

    def watch() -> None:
        while os.getppid() == forked_by and parent.is_alive():
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="end_with_parent", daemon=True).start()
