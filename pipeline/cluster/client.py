"""The job server of a Ray cluster, over HTTP: jobs are submitted, listed, followed and stopped. No driver is here."""

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from stillhouse.pipeline.errors import RunError
from stillhouse.schemas.config import ConfigError

TIMEOUT_S = 10.0
"""What a job server gets to say that it is there."""
POLL_EVERY_S = 0.5
STOP_WAIT_S = 60
"""What a job gets to end after it is told to (RAY_JOB_STOP_WAIT_TIME_S); Ray 2.60 kills after 3 s
(dashboard/modules/job/job_supervisor.py). An engine needs up to 30 s to end its processes."""
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})


def find_address(given: str | None) -> str:
    """The job server's address: as given, else from Ray's own variables. Raises `ConfigError` for one of another
    kind."""
    address = given or next((os.environ[name] for name in ADDRESS_VARIABLES if os.environ.get(name)), None)
    if address is None:
        raise ConfigError("--address: is missing; write --address http://HEAD:8265, or set RAY_API_SERVER_ADDRESS")
    if not address.startswith(("http://", "https://")):
        raise ConfigError(
            f"--address: {address!r} is not where jobs are submitted, which is the head's dashboard; write "
            "http://HEAD:8265"
        )
    return address.rstrip("/")


class Jobs:
    """The jobs of one cluster. Raises `ConfigError` where nothing answers at `address` that takes us in."""

    def __init__(self, address: str) -> None:
        self.address = address
        _check_server(address)
        with _without(ADDRESS_VARIABLES), self._explained():  # these win over the address that is given
            from ray.job_submission import JobSubmissionClient

            for handler in logging.getLogger("ray").handlers:  # it tells of every ignore file that it reads
                handler.setLevel(logging.ERROR)
            self._client = JobSubmissionClient(address)

    def submit(
        self, entrypoint: str, submission_id: str, runtime_env: dict[str, Any], metadata: dict[str, str]
    ) -> bool:
        """Whether the job was submitted; False where the id has been used. What it needs is uploaded first."""
        with self._explained():
            try:
                self._client.submit_job(
                    entrypoint=entrypoint, submission_id=submission_id, runtime_env=runtime_env, metadata=metadata
                )
            except RuntimeError as error:
                if "already exists" in str(error):
                    return False
                raise
        return True

    def jobs(self) -> list[Any]:
        """Ray's `JobDetails` of every submitted job, the newest first."""
        with self._explained():
            found = [job for job in self._client.list_jobs() if job.submission_id]
        return sorted(found, key=lambda job: -(job.start_time or 0))

    def job(self, submission_id: str) -> Any:
        """Ray's `JobDetails` of a job that is there."""
        with self._explained():
            return self._client.get_job_info(submission_id)

    def log(self, submission_id: str) -> str:
        with self._explained():
            return str(self._client.get_job_logs(submission_id))

    def follow(self, submission_id: str, say: Callable[[str], None]) -> Any:
        """Gives every line of the job's log to `say` as it comes. Returns the `JobDetails` once the job has ended. A
        connection that breaks is made again, and goes on where it was. Raises KeyboardInterrupt soon after Ctrl-C."""
        reader = _Lines(say)
        with _interrupts() as interrupted:
            return self._follow(submission_id, reader, interrupted)

    def _follow(self, submission_id: str, reader: "_Lines", interrupted: threading.Event) -> Any:
        while True:
            with self._explained():
                with contextlib.suppress(OSError, RuntimeError):  # the log is not there yet, or the connection broke
                    asyncio.run(self._read(submission_id, reader, interrupted))
                if interrupted.is_set():
                    raise KeyboardInterrupt
                details = self._client.get_job_info(submission_id)
                if has_ended(details):
                    with contextlib.suppress(RuntimeError):
                        reader.read_whole(self._client.get_job_logs(submission_id))
                    reader.close()
                    return details
            time.sleep(POLL_EVERY_S)

    def wait(self, submission_id: str, timeout_s: float) -> Any:
        """The `JobDetails` once the job has ended, or when `timeout_s` is over."""
        until = time.monotonic() + timeout_s
        while True:
            details = self.job(submission_id)
            if has_ended(details) or time.monotonic() > until:
                return details
            time.sleep(POLL_EVERY_S)

    def stop(self, submission_id: str) -> None:
        """Tells a job to end; Ray kills it `STOP_WAIT_S` later."""
        with self._explained():
            self._client.stop_job(submission_id)

    def delete(self, submission_id: str) -> None:
        """Takes an ended job out of the list."""
        with self._explained(), contextlib.suppress(RuntimeError):
            self._client.delete_job(submission_id)

    async def _read(self, submission_id: str, reader: "_Lines", interrupted: threading.Event) -> None:
        reading = asyncio.ensure_future(self._tail(submission_id, reader))
        while not reading.done():
            await asyncio.wait({reading}, timeout=POLL_EVERY_S)
            if interrupted.is_set():
                return
        reading.result()

    async def _tail(self, submission_id: str, reader: "_Lines") -> None:
        reader.begin()
        async for chunk in self._client.tail_job_logs(submission_id):
            reader.read(chunk)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """What the client raises, in one sentence."""
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError:
            raise ConfigError(
                f"--address: the cluster at {self.address} does not accept this process's token; set "
                "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token to what the head was started with"
            ) from None
        except (requests.exceptions.ConnectionError, requests.exceptions.Timeout, ConnectionError):
            raise RunError(
                f"--address: {self.address} does not answer any more; jobs go on without this connection, so try again"
            ) from None
        except (requests.exceptions.RequestException, ValueError, KeyError) as error:
            if isinstance(error, ConfigError):
                raise
            raise RunError(f"--address: {self.address} answers unlike a Ray job server; check the address") from None
        except RuntimeError as error:  # what the server refuses
            if type(error) is not RuntimeError:
                raise
            said = next(iter(str(error).splitlines()), "")[:300]
            raise RunError(f"--address: {self.address} refuses a request: {said}") from None


class _Lines:
    """A log that may be read several times from its beginning, as lines that come once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._num_said = self._position = 0
        self._rest = ""

    def begin(self) -> None:
        self._position = 0

    def read(self, chunk: str) -> None:
        new = chunk[max(0, self._num_said - self._position) :]
        self._position += len(chunk)
        if not new:
            return
        self._num_said = self._position
        *lines, self._rest = (self._rest + new).split("\n")
        for line in lines:
            self._say(line)

    def read_whole(self, log: str) -> None:
        self.begin()
        self.read(log)

    def close(self) -> None:
        if self._rest:
            self._say(self._rest)


def status_of(details: Any) -> str:
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    return str(details.status.value)


def has_ended(details: Any) -> bool:
    return status_of(details) in ENDED


def _check_server(address: str) -> None:
    """Raises `ConfigError` where no job server answers within `TIMEOUT_S`; Ray's client would wait for minutes."""
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code not in (401, 403):  # it wants a token, which the client has
            raise ConfigError(
                f"--address: {address} answers HTTP {error.code}, so it is no Ray dashboard; write http://HEAD:8265"
            ) from None
    except (OSError, ValueError):
        raise ConfigError(
            f"--address: nothing answers at {address}; start the cluster, or correct the address (the head's "
            "dashboard, forwarded or reachable from here: http://HEAD:8265)"
        ) from None


@contextlib.contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Set by the first SIGINT or SIGTERM; the second one raises where it lands.

    asyncio would make a cancellation of the first, and an HTTP client may end that as a broken connection, which is
    only made again: the interrupt would be lost.
    """
    interrupted = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()

    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)} if is_main else {}
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    """The environment without these variables."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
