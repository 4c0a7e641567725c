"""Engines that start beside each other on one machine: each file of a hub model is fetched once."""

import os
import subprocess
import sys
import threading
from pathlib import Path

from tests.support.data import ROOT
from tests.support.hub import Hub

FETCH = """
import sys
from vllm.model_executor.model_loader.weight_utils import download_weights_from_hf
print("ready", flush=True)
sys.stdin.readline()
print(download_weights_from_hf("org/teacher", None, ["*.safetensors"], revision=sys.argv[1]))
"""
"""vLLM's own function, which its loader calls in each process of an engine."""


def test_weights_are_fetched_once_by_two_engines(tmp_path: Path) -> None:
    """Which begin in the same moment, and a file takes seconds."""
    files = {"config.json": b"{}", **{f"model-{n}.safetensors": os.urandom(1 << 20) for n in range(2)}}
    hub = Hub(files, "models/org/teacher", seconds=3)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    try:
        pipe, command = subprocess.PIPE, [sys.executable, "-c", FETCH, hub.commit]
        engines = [
            subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True) for _ in range(2)
        ]
        for engine in engines:
            assert engine.stdout is not None
            assert engine.stdout.readline() == "ready\n"
        for engine in engines:
            assert engine.stdin is not None
            engine.stdin.write("\n")
            engine.stdin.flush()
        found = {engine.communicate(timeout=300)[0].splitlines()[-1] for engine in engines}
    finally:
        hub.shutdown()
        hub.server_close()
    (folder,) = found
    assert sorted(hub.sent) == ["model-0.safetensors", "model-1.safetensors"]
    for name in hub.sent:
        assert Path(folder, name).read_bytes() == files[name]
