"""Root keys: where they come from, what is derived from them."""

from __future__ import annotations

import base64
import stat
import threading

import pytest

from patchbay.errors import FailedPrecondition
from patchbay.keys import derive
from patchbay_gateway.kernel import keys

OLD, NEW = bytes(range(32)), bytes(range(32, 64))


def test_root_from_environment_as_hex_base64_or_long_text():
    roots = keys.load_roots(
        {
            "PATCHBAY_STORE_KEY": NEW.hex() + "\n",
            "PATCHBAY_PLUGINS_KEY": base64.b64encode(NEW).decode(),
            "PATCHBAY_CLUSTER_KEY": "test-key-" * 5,
        },
        keys.ROOTS,
    )
    assert roots.store == roots.plugins == (NEW,)
    assert len(roots.cluster[0]) == 32


def test_root_file_second_line_is_the_previous_generation(tmp_path):
    file = tmp_path / "cluster"
    file.write_text(f"{NEW.hex()}\n\n{OLD.hex()}\n")
    roots = keys.load_roots({"PATCHBAY_CLUSTER_KEY_FILE": str(file)}, ["cluster"])
    assert roots.cluster == (NEW, OLD)
    assert roots.store == ()


@pytest.mark.parametrize("text", ["", "short", f"{NEW.hex()}\n" * 3])
def test_root_malformed_is_refused_with_the_variable(tmp_path, text):
    file = tmp_path / "store"
    file.write_text(text)
    with pytest.raises(FailedPrecondition, match="PATCHBAY_STORE_KEY_FILE"):
        keys.load_roots({"PATCHBAY_STORE_KEY_FILE": str(file)}, ["store"])


def test_root_missing_is_refused_with_a_remedy(tmp_path):
    with pytest.raises(FailedPrecondition, match=r"PATCHBAY_PLUGINS_KEY_FILE.*openssl rand"):
        keys.load_roots({}, ["plugins"])
    with pytest.raises(FailedPrecondition, match="cannot be read"):
        keys.load_roots({"PATCHBAY_PLUGINS_KEY_FILE": str(tmp_path / "none")}, ["plugins"])


def test_roots_are_made_once_in_the_data_directory(tmp_path):
    made = keys.load_roots({}, keys.ROOTS, tmp_path)
    assert made == keys.load_roots({}, keys.ROOTS, tmp_path)
    assert len({made.store, made.plugins, made.cluster}) == 3
    assert {path.name for path in (tmp_path / "keys").iterdir()} == set(keys.ROOTS)
    for path in (tmp_path / "keys").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert made.store[0].hex() not in repr(made)


def test_roots_of_processes_that_start_together_are_equal(tmp_path):
    found: list[keys.Roots] = []
    threads = [
        threading.Thread(target=lambda: found.append(keys.load_roots({}, keys.ROOTS, tmp_path)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1


def test_root_file_of_ours_that_others_can_read_is_refused(tmp_path):
    keys.load_roots({}, ["store"], tmp_path)
    (tmp_path / "keys" / "store").chmod(0o644)
    with pytest.raises(FailedPrecondition, match="chmod 600"):
        keys.load_roots({}, ["store"], tmp_path)


def test_derived_keys_are_stable_and_apart():
    """The values are part of the contract: an upgrade must not change them."""
    assert keys.plugin_key(NEW, "echo") == derive(NEW, b"patchbay plugin v1:echo")
    assert keys.plugin_key(NEW, "echo") != keys.plugin_key(NEW, "other")
    assert keys.service_key(NEW) == derive(NEW, b"patchbay service v1")
    digest = keys.client_key_digest(NEW, "test-key")
    assert digest == "f372d36f85295f48810ffa0db14e5aa2ed2af0cfd0271c37c5008cfed51f0b2d"
    assert digest != keys.client_key_digest(OLD, "test-key")
    assert (
        keys.fingerprint(NEW, b"test-key")
        == "badec957cea2068da61b01958e52aa15c01b401c1b5be2e93a7ecfbc1ec46a55"
    )
