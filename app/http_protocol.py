"""The parser of requests: uvicorn's on httptools, for a fraction of the processor that h11 takes, and as strict as h11."""

import sys

from httptools import HttpParserUpgrade
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MAX_HEAD_BYTES = 64 * 1024  # h11's limit; httptools has none


class HttpProtocol(HttpToolsProtocol):
    """Answers 400 where a head, a chunk's head or trailers do not end, and where a URL is not ASCII.

    A request with an `Upgrade` goes to h11, with all that follows it: httptools would drop its body, and Java's client
    offers HTTP/2 with its first one.
    """

    _num_unparsed = 0  # bytes since the last part of a request that was whole
    _data = b""

    def data_received(self, data: bytes) -> None:
        self._num_unparsed += len(data)
        self._data = data
        super().data_received(data)
        self._data = b""
        if self._num_unparsed > _MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("Invalid HTTP request received.")

    def on_url(self, url: bytes) -> None:
        if not url.isascii():
            raise ValueError("a URL is ASCII")  # the parser refuses the request
        super().on_url(url)

    def on_headers_complete(self) -> None:
        self._num_unparsed = 0
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        self._num_unparsed = 0

    def on_body(self, body: bytes) -> None:
        self._num_unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._num_unparsed = 0
        super().on_message_complete()

    def _should_upgrade(self) -> bool:
        return True  # asked of requests with an `Upgrade` alone

    def handle_websocket_upgrade(self) -> None:
        reason = sys.exception()
        assert isinstance(reason, HttpParserUpgrade)
        if self.cycle is not None and not self.cycle.response_complete:
            self.send_400_response("Invalid HTTP request received.")
            return
        method, version = self.scope["method"].encode(), self.scope["http_version"].encode()
        head = [b"%s %s HTTP/%s" % (method, self.url, version)]
        head += [b"%s: %s" % header for header in self.scope["headers"]]
        self.connections.discard(self)
        protocol = H11Protocol(self.config, self.server_state, self.app_state)
        protocol.connection_made(self.transport)
        self.transport.set_protocol(protocol)
        protocol.data_received(b"\r\n".join([*head, b"", b""]) + self._data[reason.args[0] :])
