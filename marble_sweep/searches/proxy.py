"""A study that one process serves to workers which reach neither its files nor its database: Optuna's gRPC proxy.

The connection is neither encrypted nor protected: whoever reaches the port can change the study. Optuna calls the proxy
experimental. Its server cannot be stopped, and its client waits without end for a machine that has vanished; so both
are put together here, from Optuna's private parts.
"""

import contextlib
import json
import logging
import socket
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, GrpcStorageProxy
from optuna.storages._grpc.auto_generated.api_pb2_grpc import StorageServiceStub
from optuna.storages._grpc.client import GrpcClientCache
from optuna.storages._grpc.server import make_server

from marble_sweep.checks import CheckError, wrong_value

CONNECT_SECONDS = 10
CALL_SECONDS = 60  # for the answer to a call
RECONNECT_SECONDS = 2  # at most between two tries to connect again; by default they grow to two minutes
STOP_SECONDS = 2.0  # for calls that are being answered when the server stops
THREADS = 10
CHANNEL = [
    ("grpc.enable_http_proxy", 0),  # a cluster's proxy leads out of it
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_reconnect_backoff_ms", 1000 * RECONNECT_SECONDS),
    (
        "grpc.service_config",
        json.dumps({"methodConfig": [{"name": [{"service": "optuna.StorageService"}], "timeout": f"{CALL_SECONDS}s"}]}),
    ),
]


class Proxy(GrpcStorageProxy):
    """The storage that another process serves at `address`, HOST:PORT."""

    def __init__(self, address: str) -> None:
        """Raises OSError where nothing answers there."""
        host, _, port = address.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()  # gRPC does not say why
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            super().__init__(host=host, port=int(port))
        try:
            grpc.channel_ready_future(self._channel).result(CONNECT_SECONDS)
        except grpc.FutureTimeoutError:
            self.close()
            raise OSError(f"no study is served there within {CONNECT_SECONDS} seconds") from None

    def _setup(self) -> None:
        self._channel = connect(f"{self._host}:{self._port}")
        self._stub = StorageServiceStub(self._channel)
        self._cache = GrpcClientCache(self._stub)


def connect(address: str) -> grpc.Channel:
    """A channel to HOST:PORT, which need not answer yet."""
    return grpc.insecure_channel(address, CHANNEL)


@contextlib.contextmanager
def serving(storage: BaseStorage, address: str, *others: grpc.GenericRpcHandler) -> Iterator[None]:
    """Serve a storage at HOST:PORT meanwhile, and `others` beside it.

    Raises CheckError where that is no free address of this machine.
    """
    host, _, port = address.rpartition(":")
    _require_free(host, int(port))
    logging.getLogger("grpc._server").addFilter(_is_bug)
    with ThreadPoolExecutor(THREADS) as pool:
        server = make_server(storage, host, int(port), pool)
        server.add_generic_rpc_handlers(others)
        server.start()
        try:
            yield
        finally:
            server.stop(STOP_SECONDS).wait()


def _require_free(host: str, port: int) -> None:
    """gRPC would say no more than that it failed, and share the port with another server of its kind."""
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of an earlier server may be closing
        try:
            probe.bind((host.strip("[]"), port))
        except OSError as error:
            allowed = f"a free address of this machine: {error.strerror}"
            raise wrong_value("search.serve", f"{host}:{port}", allowed) from None


def _is_bug(record: logging.LogRecord) -> bool:
    """Whether gRPC logs what a call raised: whoever called is told of our own complaints in a line."""
    return record.exc_info is None or not isinstance(record.exc_info[1], CheckError)
