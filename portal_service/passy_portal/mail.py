"""Letters to people, by the operator's mail server. A link is shown on a page all the same, so mail
that does not come stops nobody.
"""

from __future__ import annotations

import asyncio
import smtplib
import ssl
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from passy_portal.settings import LOOPBACK

if TYPE_CHECKING:
    from passy_portal.settings import Mail

PATIENCE = 10.0
"""Seconds that each step of sending may take."""
AT_ONCE = 2


class Undelivered(Exception):
    """Why a letter was not taken, for people."""


class Mailer:
    """Hands letters to the server, in threads."""

    def __init__(self, settings: Mail) -> None:
        self._settings = settings
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def send(self, to: str, subject: str, text: str) -> None:
        """Raises `Undelivered`."""
        letter = EmailMessage()
        try:
            letter["From"], letter["To"] = self._settings.sender, to
            letter["Subject"] = " ".join(subject.split())
        except ValueError as error:  # Of who has a strange address.
            raise Undelivered(f"it cannot be addressed: {error}") from error
        letter["Date"] = formatdate(usegmt=True)
        letter["Message-ID"] = make_msgid("passy", self._settings.sender.rpartition("@")[2])
        letter["Auto-Submitted"] = "auto-generated"
        letter.set_content(text)
        async with self._turns:
            await asyncio.to_thread(self._hand_over, letter)

    def _hand_over(self, letter: EmailMessage) -> None:
        parts = urlsplit(self._settings.url.reveal())
        host, secure = parts.hostname or "", parts.scheme == "smtps"
        trusted = ssl.create_default_context()
        try:
            with (
                smtplib.SMTP_SSL(host, parts.port or 465, timeout=PATIENCE, context=trusted)
                if secure
                else smtplib.SMTP(host, parts.port or 587, timeout=PATIENCE)
            ) as server:
                if not secure and host not in LOOPBACK:
                    server.ehlo()
                    if not server.has_extn("starttls"):
                        raise Undelivered("the mail server offers no encryption")
                    server.starttls(context=trusted)
                if parts.username:
                    server.login(unquote(parts.username), unquote(parts.password or ""))
                server.send_message(letter)
        except (smtplib.SMTPException, OSError, ValueError) as error:
            raise Undelivered(said(error)) from error


def said(error: Exception) -> str:
    """In a few words, and without what was sent."""
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        code, text = next(iter(error.recipients.values()))
        return f"the address was refused ({code} {text.decode(errors='replace')[:100]})"
    if isinstance(error, smtplib.SMTPAuthenticationError):
        return "the mail server refuses to let the portal in"
    if isinstance(error, smtplib.SMTPNotSupportedError):
        return "the mail server does not know what is needed for this letter, or for its login"
    if isinstance(error, smtplib.SMTPResponseException):
        return f"the mail server answered {error.smtp_code}"
    if isinstance(error, smtplib.SMTPServerDisconnected):
        return "the mail server hung up"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the mail server's certificate is refused ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return f"no encryption came about with the mail server ({error.reason})"
    return f"the mail server cannot be reached ({type(error).__name__})"
