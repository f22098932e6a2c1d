"""A mail server of a page: takes letters on loopback, and refuses what it is told to."""

from __future__ import annotations

import base64
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage


class MailServer:
    """Plain SMTP with ``AUTH PLAIN`` (RFC 5321, RFC 4954)."""

    USER, PASSWORD = "portal@example.com", "p@ss/word:9c41"

    def __init__(self, host: str = "127.0.0.1") -> None:
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
        self.url = f"smtp://portal%40example.com:p%40ss%2Fword%3A9c41@{host}:{self.port}"

    @classmethod
    @contextmanager
    def running(cls, host: str = "127.0.0.1") -> Iterator[MailServer]:
        server = cls(host)
        thread = threading.Thread(target=server._server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server._server.shutdown()
            thread.join()
            server._server.server_close()

    def _serve(self, session: socketserver.StreamRequestHandler) -> None:
        def say(line: str) -> None:
            session.wfile.write(f"{line}\r\n".encode())

        say("220 mail.test ESMTP")
        known, to = False, ""
        wanted = f"\0{self.USER}\0{self.PASSWORD}".encode()
        while line := session.rfile.readline():
            text = line.decode().strip()
            self.heard.append(text)
            verb = text[:4].upper()
            if verb == "EHLO":
                say("250-mail.test")
                say("250-SMTPUTF8")
                say("250-8BITMIME")
                say("250 AUTH PLAIN")
            elif verb == "AUTH":
                known = base64.b64decode(text.split()[-1]) == wanted
                say("235 welcome" if known else "535 no")
            elif verb == "MAIL":
                say("250 ok" if known else "530 who are you")
            elif verb == "RCPT":
                to = text.partition("<")[2].partition(">")[0]
                say("550 nobody of that name" if to == self.refuses else "250 ok")
            elif verb == "DATA":
                say("354 go on")
                content = b""
                while (part := session.rfile.readline()) != b".\r\n":
                    content += part[1:] if part.startswith(b"..") else part
                letter = message_from_bytes(content, policy=policy.default)
                assert isinstance(letter, EmailMessage)
                self.letters.append((to, letter))
                say("250 taken")
            elif verb == "QUIT":
                say("221 bye")
                return
            else:
                say("250 ok")
