"""Is there a cluster at this address that takes us in? Asked before `ray.init`, which tries for 20 s to minutes."""

import contextlib
import socket

from stillhouse.schemas.config import ConfigError

TIMEOUT_S = 5.0


def check_address(address: str) -> None:
    """Raises `ConfigError` for a RAY_ADDRESS that `ray.init` would try for long, or fail on with a traceback.

    `address`: local, auto, HOST:PORT of a head, or another kind. A head is asked for its id, with the token that
    this process has: one request, which Ray 2.60's heads answer with UNAUTHENTICATED where the token is not theirs.
    """
    if address.startswith(("http://", "https://")):
        raise ConfigError(
            f"RAY_ADDRESS: {address!r} is where jobs are submitted (stillhouse submit CONFIG --address {address}), "
            "and this process would be a driver; unset it, or set it to the head's HOST:6379 or to auto"
        )
    if address.startswith("ray://"):
        raise ConfigError(
            f"RAY_ADDRESS: {address!r} is where Ray clients connect, and a run is a driver of its own, in the cluster; "
            "submit it as a job (stillhouse submit CONFIG --address http://HEAD:8265), or set RAY_ADDRESS to the "
            "head's HOST:6379 or to auto"
        )
    head = _auto() if address == "auto" else address
    if head is None:
        return
    host, _, port = head.rpartition(":")
    if "/" in head or not host or not port.isdecimal():
        return  # local: answers at once
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=TIMEOUT_S).close()
    except OSError:
        raise ConfigError(
            f"RAY_ADDRESS: nothing listens at {head!r}; start the cluster, correct the address, or unset it to run "
            "on this machine"
        ) from None
    if _refuses_token(head):
        raise ConfigError(
            f"RAY_ADDRESS: the cluster at {head!r} does not accept this process's token; set RAY_AUTH_MODE=token, and "
            "RAY_AUTH_TOKEN or ~/.ray/auth_token to what the head was started with"
        )


def _auto() -> str | None:
    """The head that `auto` stands for; None where there is none, or where this release of Ray does not say."""
    import ray  # noqa: F401  the private modules need it

    with contextlib.suppress(ImportError, ConnectionError):
        from ray._private.services import canonicalize_bootstrap_address

        head: str | None = canonicalize_bootstrap_address("auto")
        return head
    return None


def _refuses_token(head: str) -> bool:
    """Whether the head says so. Other errors are `ray.init`'s to tell."""
    import ray  # noqa: F401

    try:
        import grpc
        from ray._private.grpc_utils import init_grpc_channel
        from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
    except ImportError:  # private, so another release may have moved them
        return False
    channel = init_grpc_channel(head, [("grpc.enable_http_proxy", 0)])
    try:
        service = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        service.GetClusterId(gcs_service_pb2.GetClusterIdRequest(), timeout=TIMEOUT_S)
    except grpc.RpcError as error:
        return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    finally:
        channel.close()
    return False
