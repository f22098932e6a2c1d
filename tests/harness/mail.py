"""A mail server of a page: takes letters on loopback, and refuses what it is told to."""

from __future__ import annotations

import base64
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage


class MailServer:
    """SMTP with ``AUTH PLAIN`` (RFC 5321, RFC 4954), plain where there is no ``context``, else with
    STARTTLS (RFC 3207), or within TLS from the first byte (RFC 8314) where it is ``implicit``."""

    USER, PASSWORD = "portal@example.com", "p@ss/word:9c41"

    def __init__(
        self,
        host: str = "127.0.0.1",
        context: ssl.SSLContext | None = None,
        *,
        implicit: bool = False,
    ) -> None:
        self._context = context
        self._implicit = implicit
        self._wrapped: list[ssl.SSLSocket] = []
        self.offers = True
        """Whether it says that it knows STARTTLS."""
        self.slips_in = ""
        """What somebody on the way adds to its answer to STARTTLS."""
        self.in_clear: list[str] = []
        """Every line that was not encrypted."""
        self.letters: list[tuple[str, EmailMessage]] = []
        """Who they went to, and what they say."""
        self.heard: list[str] = []
        """Every line but those of letters."""
        self.refuses = ""
        """An address that does not exist."""
        mail = self

        class Session(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                mail._serve(self)

        socketserver.ThreadingTCPServer.allow_reuse_address = True
        self._server = socketserver.ThreadingTCPServer((host, 0), Session)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        scheme = "smtps" if implicit else "smtp"
        self.url = f"{scheme}://portal%40example.com:p%40ss%2Fword%3A9c41@{host}:{self.port}"

    @classmethod
    @contextmanager
    def running(
        cls,
        host: str = "127.0.0.1",
        context: ssl.SSLContext | None = None,
        *,
        implicit: bool = False,
    ) -> Iterator[MailServer]:
        server = cls(host, context, implicit=implicit)
        thread = threading.Thread(target=server._server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server._server.shutdown()
            thread.join()
            server._server.server_close()
            for each in server._wrapped:
                each.close()

    def _serve(self, session: socketserver.StreamRequestHandler) -> None:
        if not self._implicit or self._encrypted(session):
            _Talk(self, session).serve()

    def _encrypted(self, session: socketserver.StreamRequestHandler) -> bool:
        """Whether a handshake came about."""
        assert self._context is not None
        session.request.settimeout(60)  # Of a client that waits for us to speak first.
        try:
            secure = self._context.wrap_socket(session.request, server_side=True)
        except OSError:  # The client does not trust it.
            return False
        session.request = session.connection = secure
        session.setup()
        self._wrapped.append(secure)
        return True


class _Talk:
    """One connection, as far as it has come."""

    def __init__(self, mail: MailServer, session: socketserver.StreamRequestHandler) -> None:
        self._mail = mail
        self._session = session
        self._secure = mail._implicit
        self._known, self._to = False, ""

    def serve(self) -> None:
        self._say("220 mail.test ESMTP")
        while line := self._session.rfile.readline():
            text = line.decode().strip()
            self._mail.heard.append(text)
            if not self._secure:
                self._mail.in_clear.append(text)
            verb = text[:4].lower().replace("mail", "from")
            answer = getattr(self, f"_{verb}", self._other)
            if not answer(text):
                return

    def _say(self, *lines: str) -> bool:
        self._session.wfile.write("".join(f"{line}\r\n" for line in lines).encode())
        return True

    def _other(self, text: str) -> bool:
        return self._say("250 ok")

    def _ehlo(self, text: str) -> bool:
        offers = self._mail._context and self._mail.offers and not self._secure
        more = ("250-STARTTLS",) if offers else ()
        return self._say(
            "250-mail.test", "250-SMTPUTF8", "250-8BITMIME", *more, "250 AUTH PLAIN"
        )  # fmt: skip

    def _star(self, text: str) -> bool:
        self._say("220 go on" + self._mail.slips_in)
        self._secure, self._known = True, False
        return self._mail._encrypted(self._session)

    def _auth(self, text: str) -> bool:
        wanted = f"\0{self._mail.USER}\0{self._mail.PASSWORD}".encode()
        self._known = base64.b64decode(text.split()[-1]) == wanted
        return self._say("235 welcome" if self._known else "535 no")

    def _from(self, text: str) -> bool:
        return self._say("250 ok" if self._known else "530 who are you")

    def _rcpt(self, text: str) -> bool:
        self._to = text.partition("<")[2].partition(">")[0]
        refused = self._to == self._mail.refuses
        return self._say("550 nobody of that name" if refused else "250 ok")

    def _data(self, text: str) -> bool:
        self._say("354 go on")
        content = b""
        while (part := self._session.rfile.readline()) != b".\r\n":
            content += part[1:] if part.startswith(b"..") else part
        letter = message_from_bytes(content, policy=policy.default)
        assert isinstance(letter, EmailMessage)
        self._mail.letters.append((self._to, letter))
        return self._say("250 taken")

    def _quit(self, text: str) -> bool:
        self._say("221 bye")
        return False
