"""The same as tests/pipeline/test_fuzz.py, as long as one likes: FUZZ_SECONDS says how long."""

import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fuzzing import EXAMPLES_PER_ROUND, PROPERTIES, check


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.mark.parametrize("name", PROPERTIES)
def test_long(name: str, folder: Path) -> None:
    budget_s = float(os.environ.get("FUZZ_SECONDS", "120")) / len(PROPERTIES)
    first = start = random.SystemRandom().randrange(1 << 32)
    began, count = time.monotonic(), 0
    while time.monotonic() - began < budget_s:
        print(f"\n{name}: seed {start}, {count} examples, {time.monotonic() - began:.0f} s", end="", flush=True)
        count += check(*PROPERTIES[name], folder, start, EXAMPLES_PER_ROUND)
        start += 1
    print(f"\n{name}: {count} examples in {time.monotonic() - began:.0f} s, seeds {first} to {start - 1}")
