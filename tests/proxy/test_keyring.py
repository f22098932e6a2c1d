"""The ring of secret keys: rotation, refusals, the file."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import stat
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from passy_proxy.envelope import Damaged
from passy_proxy.keyring import FILE, Keyring, KeyringError, UnknownKey

OLD = "the old secret key, long enough to be one"
NEW = "a newer secret key, long enough to be one"


def test_what_is_sealed_opens_for_its_owner_alone() -> None:
    ring = Keyring([OLD])
    sealed = ring.seal("sk-secret", "acme", "openai")
    assert "sk-secret" == ring.open(sealed, "acme", "openai")
    for other in (("other", "openai"), ("acme", "nebius"), ("acme",), ("acme", "openai", "")):
        with pytest.raises(KeyringError, match="belongs elsewhere"):
            ring.open(sealed, *other)


def test_owners_that_read_alike_are_told_apart() -> None:
    sealed = Keyring([OLD]).seal("sk-secret", "a", "b', 'c")
    with pytest.raises(KeyringError):
        Keyring([OLD]).open(sealed, "a", "b", "c")


def test_a_sealed_text_names_its_format_and_its_key_and_hides_the_rest() -> None:
    ring = Keyring([OLD])
    version, key_id, wrapped, text = ring.seal("sk-secret", "acme").split(":")
    assert ("v2", ring.first, 80) == (version, key_id, len(wrapped))
    assert 12 + 9 + 16 == len(text) * 3 // 4


def test_K2_a_changed_character_anywhere_is_found() -> None:
    ring = Keyring([OLD])
    for plain in ("sk-secret", "sk-secret1", "sk-secret12", ""):
        sealed = ring.seal(plain, "acme")
        for place in range(len(sealed)):
            for swapped in ("A", "B", "Z", "_", "-", "=", ":", "é"):
                changed = sealed[:place] + swapped + sealed[place + 1 :]
                if changed != sealed:
                    with pytest.raises(KeyringError):
                        ring.open(changed, "acme")


def test_K2_parts_of_two_envelopes_do_not_go_together() -> None:
    ring = Keyring([OLD])
    one, two = (ring.seal(each, "acme", "openai").split(":") for each in ("sk-one", "sk-two"))
    for mixed in ([*one[:3], two[3]], [*two[:3], one[3]], [*one[:2], one[3], one[2]], one[:3]):
        with pytest.raises(KeyringError):
            ring.open(":".join(mixed), "acme", "openai")


def test_what_earlier_versions_sealed_still_opens_and_becomes_new() -> None:
    ring = Keyring([OLD])
    sealed = sealed_before(OLD, "sk-secret", "acme", "openai")
    assert "sk-secret" == ring.open(sealed, "acme", "openai", "credential", "1")
    with pytest.raises(Damaged):
        ring.open(sealed, "acme", "nebius", "credential", "1")
    new = Keyring([NEW, OLD]).rewrap(sealed, "acme", "openai", "credential", "1")
    assert new.startswith("v2:")
    assert "sk-secret" == Keyring([NEW]).open(new, "acme", "openai", "credential", "1")


def sealed_before(key: str, plain: str, *owner: str) -> str:
    """As the version before sealed."""
    aead = AESGCM(hmac.digest(key.encode(), b"passy/seal/v1", "sha256"))
    bound = hashlib.sha256(repr(tuple(owner)).encode()).digest()
    nonce = secrets.token_bytes(12)
    parts = (nonce, aead.encrypt(nonce, plain.encode(), bound))
    nonce_text, text = (base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)
    return f"v1:{Keyring([key]).first}:{nonce_text}:{text}"


def test_a_new_key_wraps_the_data_key_alone() -> None:
    old, both, new = Keyring([OLD]), Keyring([NEW, OLD]), Keyring([NEW])
    sealed = old.seal("sk-secret", "acme")
    again = both.rewrap(sealed, "acme")
    assert sealed.split(":")[3] == again.split(":")[3]
    assert "sk-secret" == new.open(again, "acme")
    assert again == both.rewrap(again, "acme")
    with pytest.raises(UnknownKey, match=old.first) as refused:
        new.rewrap(sealed, "acme")
    assert old.first == refused.value.key_id
    with pytest.raises(Damaged):
        both.rewrap(sealed, "other")


def test_a_new_key_in_front_opens_what_the_old_one_sealed() -> None:
    sealed = Keyring([OLD]).seal("sk-secret", "acme")
    both = Keyring([NEW, OLD])
    assert "sk-secret" == both.open(sealed, "acme")
    assert both.first in both.seal("sk-secret", "acme")
    with pytest.raises(KeyringError, match=both.first):
        Keyring([OLD]).open(both.seal("sk-secret", "acme"), "acme")


def test_a_new_key_in_front_leaves_the_pepper() -> None:
    assert Keyring([OLD]).pepper == Keyring([NEW, OLD]).pepper
    assert Keyring([OLD]).mark() == Keyring([NEW, OLD]).mark()
    assert Keyring([OLD]).pepper != Keyring([NEW]).pepper


@pytest.mark.parametrize(
    "text",
    ["", " , ", "short", "x" * 31, "x" * 64, f"{OLD},short", "changeme" * 5, f"changeme {OLD}"],
)
def test_a_weak_or_missing_key_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(KeyringError) as refused:
        Keyring.load(tmp_path, text)
    assert "PASSY_SECRET_KEYS" in str(refused.value)
    assert [] == list(tmp_path.iterdir())


def test_K5_a_retired_key_keeps_the_pepper_and_the_evidence_and_opens_nothing() -> None:
    old, both = Keyring([OLD]), Keyring([NEW, OLD])
    entry = both.retired(old.first)
    ring = Keyring([NEW, entry])
    assert (old.pepper, old.mark()) == (ring.pepper, ring.mark())
    assert ring.attested(b"what was", old.attest(b"what was"))
    assert ring.retired(old.first) == entry
    with pytest.raises(UnknownKey, match=old.first):
        ring.open(old.seal("sk-secret", "acme"), "acme")
    assert old.first not in ring
    assert OLD not in entry
    for part in (hmac.digest(OLD.encode(), b"passy/seal/v1", "sha256"), OLD.encode()):
        assert base64.urlsafe_b64encode(part).decode().rstrip("=") not in entry
    with pytest.raises(KeyringError, match="seals nothing"):
        Keyring([entry, NEW])
    with pytest.raises(KeyError):
        both.retired("nowhere")


@pytest.mark.parametrize(
    "entry", ["retired:", "retired:abcd", "retired:ab:cd", "retired::" + "A" * 86]
)
def test_a_damaged_retired_key_is_refused(entry: str) -> None:
    with pytest.raises(KeyringError, match="key 2 of PASSY_SECRET_KEYS is no retired key"):
        Keyring([NEW, entry])


def test_no_text_form_shows_a_secret() -> None:
    ring = Keyring([NEW, OLD])
    shown = f"{ring} {ring!r} {[ring]}"
    assert OLD not in shown
    assert NEW not in shown
    assert ring.pepper.hex() not in shown


def test_without_given_keys_one_is_made_and_stays(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    first = Keyring.load(folder, None)
    assert first.pepper == Keyring.load(folder, None).pepper
    assert 0o600 == stat.S_IMODE((folder / FILE).stat().st_mode)
    assert [FILE] == [path.name for path in folder.iterdir()]


def test_of_many_at_once_all_have_the_same_key(tmp_path: Path) -> None:
    peppers: list[bytes] = []
    start = threading.Barrier(16)

    def load() -> None:
        start.wait()
        peppers.append(Keyring.load(tmp_path, None).pepper)

    threads = [threading.Thread(target=load) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 16 == len(peppers)
    assert 1 == len(set(peppers))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    Keyring.load(tmp_path, None)
    (tmp_path / FILE).chmod(mode)
    with pytest.raises(KeyringError, match="chmod 600"):
        Keyring.load(tmp_path, None)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    Keyring.load(tmp_path, None)
    (tmp_path / FILE).write_text("abc")
    with pytest.raises(KeyringError, match="3 bytes"):
        Keyring.load(tmp_path, None)


def test_only_the_same_key_attests_the_same_bytes() -> None:
    old, new = "an old key of these tests: 0123456789", "a new key of these tests: 9876543210"
    ring, text = Keyring([new, old]), Keyring([old]).attest(b"what was")
    assert ring.attested(b"what was", text)
    assert not ring.attested(b"what is", text)
    assert not ring.attested(b"what was", text[:-1])
    assert not ring.attested(b"what was", text + "\udcff")
    assert ring.attest(b"what was") != text
    for unknown in ("", "x", "\udcff:00", text):
        with pytest.raises(KeyringError, match="which is not among those given"):
            Keyring([new]).attested(b"what was", unknown)
