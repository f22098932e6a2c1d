"""Certificates for the length of a test: an authority, and what its servers show."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PEM = serialization.Encoding.PEM
_HOUR = datetime.timedelta(hours=1)


class Authority:
    """An authority of its own, whose certificate is in ``file``."""

    def __init__(self, folder: Path, name: str = "passy test CA") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._made = 0
        usage = x509.KeyUsage(
            digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False,
            key_encipherment=False, data_encipherment=False, key_agreement=False,
            encipher_only=False, decipher_only=False,
        )  # fmt: skip
        built = self._builder(self._name, self._key.public_key(), 0.0)
        built = built.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        built = built.add_extension(usage, critical=True)
        self.file = folder / f"{name.replace(' ', '-')}.pem"
        self.file.write_bytes(built.sign(self._key, hashes.SHA256()).public_bytes(PEM))

    def server(
        self, *names: str, shifted: float = 0.0, protocols: tuple[str, ...] = ()
    ) -> ssl.SSLContext:
        """What a server called ``names`` (127.0.0.1 without) shows; valid for an hour before and
        after a moment that is ``shifted`` by hours from now. ``protocols``: ALPN."""
        key = ec.generate_private_key(ec.SECP256R1())
        places = [self._place(name) for name in names or ("127.0.0.1",)]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "passy test upstream")])
        built = self._builder(subject, key.public_key(), shifted)
        built = built.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        built = built.add_extension(x509.SubjectAlternativeName(places), critical=False)
        self._made += 1
        chain = self._folder / f"server-{self._made}.pem"
        chain.write_bytes(
            key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
            + built.sign(self._key, hashes.SHA256()).public_bytes(PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        if protocols:
            context.set_alpn_protocols(list(protocols))
        return context

    def _builder(
        self, subject: x509.Name, public: ec.EllipticCurvePublicKey, shifted: float
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC) + shifted * _HOUR
        identifier = x509.SubjectKeyIdentifier.from_public_key(public)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _HOUR)
            .not_valid_after(now + _HOUR)
            .add_extension(identifier, critical=False)
            .add_extension(issuer, critical=False)
        )

    @staticmethod
    def _place(name: str) -> x509.GeneralName:
        try:
            return x509.IPAddress(ipaddress.ip_address(name))
        except ValueError:
            return x509.DNSName(name)
