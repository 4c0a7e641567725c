"""A large source, read by several processes: one of them is killed, then the driver; run again, the bytes are those of
one process that nobody disturbed."""

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

from tests.support.command import Command, contents
from tests.support.data import make_raw_config
from tests.support.processes import descendants

NUM_ROWS = 60_000


def write_source(folder: Path) -> None:
    """90 MB in two files; ids restart in the second, and a third of its rows repeat the first's."""
    folder.mkdir()
    words = [f"word{n}" for n in range(3000)]
    answer = {"role": "assistant", "content": "Because. " * 100}
    for file in range(2):
        rng = random.Random(0)
        with (folder / f"{file}.jsonl").open("w") as lines:
            for n in range(NUM_ROWS // 2):
                text = " ".join(rng.choices(words, k=40)) + (f" in {file}" if n % 3 else "")
                lines.write(json.dumps({"id": n, "messages": [{"role": "user", "content": text}, answer]}) + "\n")


def test_killed_readers_and_drivers_of_an_ingest(tmp_path: Path, weights: Path) -> None:
    write_source(tmp_path / "source")

    def command(name: str, workers: int) -> Command:
        (tmp_path / name).mkdir()
        raw: dict[str, Any] = make_raw_config(tmp_path) | {"run_dir": str(tmp_path / name / "run")}
        raw |= {"source": {"path": str(tmp_path / "source")}, "ingest": {"max_dropped_fraction": 1.0}}
        raw["resources"] = {"ingest": {"max_workers": workers, "num_cpus": 0.1}}
        return Command(tmp_path / name, raw, local=True)

    one = command("one", 1)
    expected, _ = one("run", "--until", "ingest")
    assert expected["stages"]["ingest"]["dropped"] == {"duplicate_id": NUM_ROWS // 6}
    killed = command("killed", 3)
    for victim in ("reader", "driver"):
        driver = killed.start("run", "--until", "ingest")
        before, until = len(list(killed.run_dir.glob("ingest/*"))), time.monotonic() + 60
        while len(list(killed.run_dir.glob("ingest/*"))) < before + 3 and time.monotonic() < until:
            assert driver.poll() is None
            time.sleep(0.05)
        processes = descendants(driver.pid)
        assert len(processes) >= 4  # readers, and the server that forked them before
        os.kill(max(processes) if victim == "reader" else driver.pid, signal.SIGKILL)
        _, err = driver.communicate(timeout=120)
        assert driver.returncode == (0 if victim == "reader" else -signal.SIGKILL), err
        if victim == "reader":
            assert contents(killed.run_dir) == contents(one.run_dir)
            for file in sorted(killed.run_dir.glob("ingest/*"))[5:]:
                file.unlink()
            (killed.run_dir / "state/partition.json").unlink()
    killed("run", "--until", "ingest")
    assert contents(killed.run_dir) == contents(one.run_dir)
