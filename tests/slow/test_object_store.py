"""A whole run in a bucket, also where a fifth of all requests fails."""

import collections
import random
import time
from pathlib import Path

import pytest

from stillhouse.pipeline.folder import open_folder
from tests.support.command import Command, contents
from tests.support.data import make_raw_config
from tests.support.s3 import Fault, Proxy

BUCKET = "stillhouse-test"


@pytest.mark.parametrize("fault_rate", [0.0, 0.2])
def test_run(bucket: str, proxy: Proxy, tmp_path: Path, fault_rate: float) -> None:
    """A whole run whose folder is in the bucket gives the files that a local one gives, also when a fifth
    of all requests fails in one way or another."""
    raw = make_raw_config(tmp_path)
    raw["source"]["limit"] = 20
    local = Command(tmp_path, raw)
    local("run")
    folder = f"{bucket}/run-{fault_rate}"
    generator = random.Random(1)
    injected: collections.Counter[Fault] = collections.Counter()

    def fault(method: str, path: str) -> Fault:
        time.sleep(0.02)
        faults: list[Fault] = [503, 429, "cut", "lost", "half"]
        kind = generator.choice(faults) if generator.random() < fault_rate else None
        injected[kind] += 1
        return kind

    proxy.fault = fault
    remote = Command(tmp_path, {**raw, "run_dir": folder})
    remote("run")
    print(f"\n{injected}", flush=True)
    assert sum(injected.values()) > 100
    assert len(injected) == (6 if fault_rate else 1)
    _, err = remote("run")
    assert "nothing was missing" in err
    proxy.fault = lambda method, path: None
    store = open_folder(folder)
    for key, data in contents(local.run_dir).items():
        assert store.get(key) == data, key
