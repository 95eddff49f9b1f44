"""
Keys derived from a plugin's key (proto/README.md, "Without our SDK").

A plugin's key opens what is sealed for it and proves who is at the other end of a channel; the two uses
have keys of their own, so that an edge can hold the one without the other. Not here: where a plugin's key
comes from (kernel/keys.py in the gateway, PATCHBAY_PLUGIN_KEY in a plugin).
"""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
"""Length of every key here."""


def derive(key: bytes, info: bytes) -> bytes:
    """Return HKDF-SHA-256(*key*, no salt, *info*), 32 bytes (RFC 5869)."""
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(key)


def sealing_key(plugin_key: bytes) -> bytes:
    """Return the key that secrets for the plugin are sealed with."""
    return derive(plugin_key, b"patchbay sealing v1")


def return_key(plugin_key: bytes) -> bytes:
    """Return the key that an auth provider seals new material with, for the scheduler alone."""
    return derive(plugin_key, b"patchbay return v1")


def channel_key(plugin_key: bytes) -> bytes:
    """Return the key of challenges and call tokens."""
    return derive(plugin_key, b"patchbay channel v1")


def key_id(key: bytes) -> str:
    """Return the public name of *key*: the first 8 bytes of its SHA-256 in hex."""
    return hashlib.sha256(key).hexdigest()[:16]
