"""vLLM's plugin of ours (entry point `vllm.general_plugins`): an engine ends with the process that started it, and on a
CPU its processes rest while they wait for each other.

Every process of vLLM in the environment imports this module, those of engines that are not ours included: it imports
the standard library only.
"""

import multiprocessing
import os
import threading
import time

ENGINE_MARK = "STILLHOUSE_ENGINE"
"""Environment variable by which a process of vLLM knows that a `VLLMTeacher` started it."""


def begin() -> None:
    """Called in each process of an engine. In processes that are not of an engine of ours, nothing happens."""
    if ENGINE_MARK in os.environ:
        end_with_parent()
        rest_on_cpu()


def rest_on_cpu() -> None:
    """On a CPU, wait for a message without a busy loop.

    vLLM 0.32's readers of shared memory ask again and again for a second after each message, so that an engine's core
    takes a whole processor core from the worker that it waits for: of two, a third of all time. After that second they
    sleep until the writer wakes them; here they do so at once."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

        SpinCondition.__init__.__defaults__ = (0.0,)  # busy_loop_s


def end_with_parent() -> None:
    """End this process when the one that started it is gone.

    vLLM's engine outlives a front end that was killed, and keeps the GPU's memory from the next one.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    # A server process may have forked this one for its parent: then these are two, and either's end is the end.
    forked_by = os.getppid()

    def watch() -> None:
        while os.getppid() == forked_by and parent.is_alive():
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="end_with_parent", daemon=True).start()
