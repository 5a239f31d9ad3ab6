"""Run directories of workers that do not share the sweep directory: they go home when a trial ends.

Home is the sweep directory of the process that started the workers and serves them the study. It serves the runs at the
same port: a worker asks for the run that its trial continues, and sends the run back. Both go as a tar archive, in
pieces.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import grpc

from marble_sweep.config import Config, dump
from marble_sweep.runs.parcel import pack, unpack
from marble_sweep.runs.status import config_text, find_run, read_metadata, run_directories
from marble_sweep.searches.proxy import connect
from marble_sweep.searches.storage import PatientStorage
from marble_sweep.sweeps.child import texts_for_other_thresholds

SERVICE = "marble_sweep.Runs"
PIECE = 1 << 20  # bytes; gRPC takes messages of four times as many
SECONDS = 600  # for a run to come or go


class RunsAtHome:
    """What a worker knows of the runs at home. Every call waits as the study's storage does, and raises as it does."""

    def __init__(self, address: str, storage: PatientStorage) -> None:
        self.storage = storage
        self._channel = connect(address)
        self._fetch = self._channel.unary_stream(f"/{SERVICE}/Fetch")
        self._send = self._channel.stream_unary(f"/{SERVICE}/Send")

    def fetch(self, config: Config, sweep_dir: Path, number: int, *, is_retry: bool) -> None:
        """Copy the run from home that trial `number` continues, unless there is one here already or none at all."""
        if find_run(config, sweep_dir) is None:
            texts = [dump(config), *sorted(texts_for_other_thresholds(config))]
            request = json.dumps({"configs": texts, "number": number, "is_retry": is_retry}).encode()
            self.storage.call(self._receive, request, sweep_dir)

    def _receive(self, request: bytes, sweep_dir: Path) -> None:
        with tempfile.TemporaryFile() as parcel:
            write(self._fetch(request, timeout=SECONDS), parcel)
            if parcel.tell():
                parcel.seek(0)
                unpack(parcel, sweep_dir)

    def send(self, directory: Path) -> Path:
        """Copy a run home; returns its directory here, which has the name that the run has there."""
        with tempfile.TemporaryFile() as parcel:
            pack(directory, parcel)
            name = self.storage.call(lambda: self._send(read(parcel), timeout=SECONDS)).decode()
        return directory if name == directory.name else directory.rename(directory.with_name(name))

    def close(self) -> None:
        self._channel.close()


def runs_service(sweep_dir: Path, say: Callable[[str], None]) -> grpc.GenericRpcHandler:
    """What answers workers at home. `say` is told from where a trial that is retried goes on."""

    def fetch(request: bytes, _: grpc.ServicerContext) -> Iterator[bytes]:
        asked = json.loads(request)
        run = _run_of(asked["configs"], sweep_dir)
        if asked["is_retry"]:
            known = "begins anew: its run has not come home"
            if run is not None:
                known = f"continues run {run.name}, which came home at step {read_metadata(run).get('step', 0)}"
            say(f"Trial {asked['number']} {known}")
        if run is not None:
            with tempfile.TemporaryFile() as parcel:
                pack(run, parcel)
                yield from read(parcel)

    def send(pieces: Iterator[bytes], _: grpc.ServicerContext) -> bytes:
        with tempfile.TemporaryFile() as parcel:
            write(pieces, parcel)
            parcel.seek(0)
            return unpack(parcel, sweep_dir).name.encode()

    handlers = {
        "Fetch": grpc.unary_stream_rpc_method_handler(fetch),
        "Send": grpc.stream_unary_rpc_method_handler(send),
    }
    return grpc.method_handlers_generic_handler(SERVICE, handlers)


def _run_of(configs: list[str], sweep_dir: Path) -> Path | None:
    """The run of the first config, else the longest one of the others."""
    runs = {config_text(directory): directory for directory in run_directories(sweep_dir)}
    others = [runs[config] for config in configs[1:] if config in runs]
    longest = max(others, key=lambda run: read_metadata(run).get("step", 0), default=None)
    return runs.get(configs[0], longest)


def read(parcel: BinaryIO) -> Iterator[bytes]:
    """A file in pieces, from its beginning."""
    parcel.seek(0)
    while piece := parcel.read(PIECE):
        yield piece


def write(pieces: Iterator[bytes], parcel: BinaryIO) -> None:
    for piece in pieces:
        parcel.write(piece)
