"""The artifact mirror: serves a folder over HTTP, with sendfile. Runs alone inside its guest."""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import IO, Any, BinaryIO, cast


class Handler(SimpleHTTPRequestHandler):
    """Files as they are: no index of folders, no type guessed that would unpack an archive."""

    protocol_version = "HTTP/1.1"

    def copyfile(self, source: Any, outputfile: Any) -> None:
        """Send an open file; the kernel copies it."""
        self.wfile.flush()
        self.connection.sendfile(cast(BinaryIO, source))

    def list_directory(self, path: str | os.PathLike[str]) -> None:
        """Nobody lists a release site's folders."""
        self.send_error(404, "no such file")

    def guess_type(self, path: str | os.PathLike[str]) -> str:
        """What a release site says of its files."""
        return "application/octet-stream"

    def log_message(self, format: str, *args: Any) -> None:
        """One line per request, for `podman logs`."""
        stream: IO[str] = sys.stdout
        stream.write(f"{self.client_address[0]} {format % args}\n")
        stream.flush()


def main() -> None:
    """Serve the folder argv[3] on address argv[1], port argv[2], until TERM."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    address, port, folder = sys.argv[1:4]
    ThreadingHTTPServer.daemon_threads = True
    ThreadingHTTPServer.request_queue_size = 128
    ThreadingHTTPServer((address, int(port)), partial(Handler, directory=folder)).serve_forever()


if __name__ == "__main__":
    main()
