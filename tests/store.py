"""An S3-compatible object store, served on this machine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyarrow import fs

SECRET = "secret"


class Store:
    """A bucket."""

    def __init__(self, bucket: str, host: str, port: int) -> None:
        self._options = f"?scheme=http&endpoint_override={host}:{port}&allow_bucket_creation=true"
        self.files, _ = fs.FileSystem.from_uri(self.uri(bucket))
        self.files.create_dir(bucket)

    def uri(self, path: str) -> str:
        """The URI of `bucket/...`, with user and password."""
        return f"s3://someone:{SECRET}@{path}{self._options}"

    def write(self, path: str, content: bytes) -> None:
        with self.files.open_output_stream(path, compression=None) as file:
            file.write(content)

    def upload(self, folder: Path, path: str) -> str:
        """Copies a folder to `bucket/...`, and returns its URI."""
        for file in folder.rglob("*"):
            if file.is_file():
                self.write(f"{path}/{file.relative_to(folder).as_posix()}", file.read_bytes())
        return self.uri(path)


@contextmanager
def serve(bucket: str) -> Iterator[Store]:
    """A store with an empty bucket. Set AWS_EC2_METADATA_DISABLED=true, or the client looks for a cloud first."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield Store(bucket, *server.get_host_and_port())
    finally:
        server.stop()
