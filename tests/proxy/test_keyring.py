"""The ring of secret keys: rotation, refusals, the file."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from passy_proxy.keyring import FILE, Keyring, KeyringError

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


def test_sealing_twice_never_gives_the_same() -> None:
    ring = Keyring([OLD])
    assert 1_000 == len({ring.seal("sk-secret", "acme") for _ in range(1_000)})


def test_a_changed_bit_anywhere_is_found() -> None:
    ring = Keyring([OLD])
    sealed = ring.seal("sk-secret", "acme")
    for place in range(len(sealed)):
        swapped = "A" if sealed[place] != "A" else "B"
        changed = sealed[:place] + swapped + sealed[place + 1 :]
        try:
            opened = ring.open(changed, "acme")
        except KeyringError:
            continue
        # The last digit of base 64 holds bits that mean nothing.
        assert place in (sealed.rindex(":") - 1, len(sealed) - 1)
        assert "sk-secret" == opened


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


@pytest.mark.parametrize("text", ["", " , ", "short", "x" * 31, "x" * 64, f"{OLD},short"])
def test_a_weak_or_missing_key_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(KeyringError) as refused:
        Keyring.load(tmp_path, text)
    assert "PASSY_SECRET_KEYS" in str(refused.value)
    assert [] == list(tmp_path.iterdir())


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
