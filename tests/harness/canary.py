"""Secrets that must appear nowhere: made to be found again, in whatever form they leak."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote


class Canaries:
    """Words that stand for secrets; `search` finds them plain, encoded or by a long part."""

    def __init__(self) -> None:
        self._words: dict[str, str] = {}

    def word(self, name: str, prefix: str = "") -> str:
        """A secret that nothing else contains."""
        return self._words.setdefault(name, prefix + secrets.token_urlsafe(24))

    def known(self, name: str, secret: str) -> str:
        """The same for a secret that something else made."""
        return self._words.setdefault(name, secret)

    def search(self, data: bytes, where: str) -> None:
        """Fails naming the secrets found in ``data``."""
        found = sorted(name for name, word in self._words.items() if self._within(word, data))
        assert not found, f"{where} shows {', '.join(found)}"

    def search_files(self, paths: Iterable[Path]) -> None:
        for path in paths:
            with suppress(FileNotFoundError, IsADirectoryError):  # It may have gone meanwhile.
                self.search(path.read_bytes(), str(path))

    @staticmethod
    def _within(word: str, data: bytes) -> bool:
        plain = word.encode()
        forms = [
            plain,
            plain[-20:],
            plain[:24],
            quote(word, safe="").encode(),
            plain.hex().encode(),
        ]
        # Of base64 there are three forms, by where the word begins within three bytes.
        forms += [base64.b64encode(b"\0" * shift + plain)[4:-4] for shift in range(3)]
        return any(form in data for form in forms)
