"""Where a process finds its configuration and keeps its own files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path
from typing import TYPE_CHECKING

from passy_proxy.config.document import Document, load, parse
from passy_proxy.config.legacy import layers
from passy_proxy.config.model import GatewayFile

if TYPE_CHECKING:
    from passy_proxy.keyring import Keyring

LAST_GOOD = "last-good.yaml"
"""In the data folder: the last configuration that went live."""

CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Place:
    """A configuration (``path``, or ``text`` where there is no file) and a data folder."""

    path: Path | None
    text: str
    data: Path

    @classmethod
    def of(
        cls, variables: Mapping[str, str], config: Path | None = None, data: Path | None = None
    ) -> Place:
        """By the arguments, else the environment, else the usual places. Raises
        FileNotFoundError."""
        path = config or usual(variables, "PASSY_CONFIG", "gateway.yaml")
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"there is no configuration at {path}")
        text = "" if path else BUILT_IN.read_text(encoding="utf-8")
        return cls(path, text, data or _data(variables))

    def folder(self) -> Path:
        """The data folder; made, for its owner alone, where there is none yet."""
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self.data

    def keyring(self, variables: Mapping[str, str]) -> Keyring:
        """The secret keys of the installation; the first time they are made. Raises KeyringError,
        also where what they are in can be neither read nor made."""
        from passy_proxy.keyring import Keyring, KeyringError

        listed = self.listed(variables)
        try:
            return Keyring.load(self.folder(), listed)
        except OSError as exc:
            why = exc.strerror or exc
            raise KeyringError(f"the data folder {self.data} cannot be used: {why}") from None

    @staticmethod
    def listed(variables: Mapping[str, str]) -> str | None:
        """``PASSY_SECRET_KEYS``, if it is set. Raises KeyringError."""
        from passy_proxy.keyring import KeyringError

        try:
            return variables.get("PASSY_SECRET_KEYS")
        except OSError as exc:
            words = "the file that PASSY_SECRET_KEYS_FILE names cannot be read"
            raise KeyringError(f"{words}: {exc.strerror or exc}") from None

    def document(self, variables: Mapping[str, str]) -> Document:
        """The configuration's tree. Raises ConfigInvalid."""
        if self.path is None:
            return parse(self.text, "built-in", variables)
        return load(self.path, variables)

    def file(self, variables: Mapping[str, str]) -> GatewayFile:
        """The configuration with what the environment adds. Raises ConfigInvalid."""
        return layers(self.document(variables), variables)


_PACKAGED = Path(__file__).with_name("built-in.yaml")
BUILT_IN = _PACKAGED if _PACKAGED.exists() else CHECKOUT / "config/gateway.yaml"
"""The wheel carries the checkout's file."""


def usual(variables: Mapping[str, str], variable: str, name: str) -> Path | None:
    """The file that a variable names, else the first that is where files of this name usually
    are."""
    if named := variables.get(variable):
        return Path(named)
    home = Path(variables.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    paths = (Path("config") / name, Path(name), home / "passy" / name, Path("/etc/passy") / name)
    # Not `Path.is_file`, which fails in a folder of somebody else: that is none of ours.
    return next((path for path in paths if isfile(path)), None)


def _data(variables: Mapping[str, str]) -> Path:
    if named := variables.get("PASSY_DATA"):
        return Path(named)
    if home := variables.get("XDG_DATA_HOME"):
        return Path(home) / "passy"
    if (CHECKOUT / "pyproject.toml").is_file() or Path(".passy").is_dir():
        return Path(".passy")
    return Path.home() / ".local/share/passy"
