"""Object stores: how one is opened, how requests are retried, and what went wrong in a few words.

Not what is kept there: `stages.sources` reads sources, `pipeline.folder` writes runs.
"""

import re
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from stillhouse.schemas.config import ConfigError, checked_location

if TYPE_CHECKING:
    from obstore.store import ObjectStore

Answer = TypeVar("Answer")

RETRIES: Any = {"max_retries": 8, "retry_timeout": timedelta(minutes=15)}
"""Retries of one request, where connections fail or the store answers 429 or 5xx: after 0.1 s, 0.2 s … 12.8 s (25 s in
all)."""
SHARD_TIMEOUT_S = 600.0
"""A shard is put in one request (conditional puts have no parts), and the usual 30 s are not enough for that on a slow
line."""
ATTEMPTS = 3
"""How often `with_retries` makes a request; each attempt has `RETRIES` of its own."""

_STATUS = re.compile(r"status code: ([45]\d\d)\b")
_CODE = re.compile(r"<Code>([A-Za-z]{1,60})</Code>")
_METADATA_SERVICES = re.compile(r"169\.254\.169\.254|169\.254\.170\.2|metadata\.google\.internal")


def open_store(url: str, timeout_s: float) -> "ObjectStore":
    """The store of `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.

    Endpoint, region and credentials come from the environment (`AWS_*`, `GOOGLE_*`, `AZURE_*`, or the machine's own
    role). `timeout_s` limits one request, its whole answer included.

    Raises `ConfigError` for another scheme, a missing bucket, or an environment that names no account.
    """
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    try:
        checked_location(url)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    # S3-compatible stores on loopback speak plain HTTP.
    client: Any = {"allow_http": True, "connect_timeout": "10s", "timeout": f"{timeout_s}s"}
    # As it is written: `#`, `?` and `%2F` would be a URL's own, and the key another one.
    scheme, _, place = url.partition("://")
    try:
        return from_url(f"{scheme}://{quote(place)}", client_options=client, retry_config=RETRIES)
    except (BaseError, ValueError) as error:
        raise ConfigError(
            f"{url}: cannot be opened ({reason(error)}); check the account, endpoint and credentials in the environment"
        ) from None


def with_retries(request: Callable[[], Answer]) -> Answer:
    """Call `request`, retrying up to `ATTEMPTS` times. It must be safe to repeat.

    `object_store` (0.14, under `obstore`) itself retries a request that fails before there is an answer. It does not
    retry a listing whose answer is cut off, nor, as unsafe to repeat, a conditional put or a deletion that times out.
    """
    from obstore.exceptions import GenericError

    for left in reversed(range(ATTEMPTS)):
        try:
            return request()
        except GenericError as error:
            if left == 0 or _refused(error):
                raise
    raise AssertionError  # the last attempt returns or raises


def reason(error: Exception) -> str:
    """Why the store failed, in a few words. Its own message can quote the store's whole answer, signatures included;
    only the status and the code are taken from it."""
    line = str(error).partition("\n")[0]
    status, code = _STATUS.search(line), _CODE.search(str(error))
    if _METADATA_SERVICES.search(line):
        return "no credentials in the environment, and this machine has no role"
    if status:
        return f"HTTP {status[1]}" + (f", {code[1]}" if code else "")
    if "incorrectly configured region" in line:
        return "the bucket is in another region"
    if "error sending request" in line:
        return "no answer"
    return type(error).__name__


def _refused(error: Exception) -> bool:
    status = _STATUS.search(str(error).partition("\n")[0])
    return status is not None and status[1].startswith("4")
