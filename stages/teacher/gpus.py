"""The GPUs that this process may use."""

import os
from glob import glob
from itertools import takewhile


def visible_gpus() -> list[str]:
    """Their names, as CUDA_VISIBLE_DEVICES has them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(n) for n in range(len(glob("/dev/nvidia[0-9]*")))]
    # CUDA takes those before the first that is none's: -1 and "none" hide all.
    return [*takewhile(_is_name, (name.strip() for name in visible.split(",")))]


def _is_name(name: str) -> bool:
    return name.isdecimal() or name.startswith(("GPU-", "MIG-"))
