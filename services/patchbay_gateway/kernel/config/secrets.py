"""
Where a secret of the configuration comes from: written out, an environment variable, or a file.

Resolved when it is needed, so that a file that rotates is read anew and no secret is in the model. Not
here: sealing and root keys (kernel/keys.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from patchbay_gateway.kernel.config.problems import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from patchbay_gateway.kernel.config.model import Config, Key
    from patchbay_gateway.kernel.config.providers import Credential


def resolve_secret(
    value: str | None,
    variable: str | None,
    file: Path | str | None,
    environ: Mapping[str, str],
    *,
    where: str = "",
) -> str | None:
    """
    Return the secret, without surrounding white space; None when no source is named.

    Args:
        value: The secret itself.
        variable: Name of an environment variable that holds it; `NAME_FILE` is tried as well.
        file: File whose content it is.
        environ: The environment.
        where: Configuration path for the message, as `client_keys.0`.

    Raises:
        ConfigError: The variable is unset, the file unreadable, or the secret empty.
    """
    if value is not None:
        found, source = value, "the value"
    elif variable is not None:
        found = environ.get(variable, "")
        source = f"the environment variable {variable}"
        if not found and environ.get(f"{variable}_FILE"):
            file = environ[f"{variable}_FILE"]
            found, source = read_secret_file(file, where=where), f"the file {file}"
        if not found:
            raise ConfigError([Problem(where, f"{source} is not set; export it or use a file")])
    elif file is not None:
        found, source = read_secret_file(file, where=where), f"the file {file}"
    else:
        return None
    if not (found := found.strip()):
        raise ConfigError([Problem(where, f"{source} is empty")])
    return found


def read_secret_file(path: Path | str, *, where: str = "") -> str:
    """
    Return the text of a secret file.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        return Path(path).expanduser().read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(
            [Problem(where, f"cannot read the file {path}: {error.strerror}")]
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(where, f"the file {path} is not text")]) from error


def environment_secret(name: str, environ: Mapping[str, str]) -> str | None:
    """
    Return the secret in *name* or in the file named by *name*_FILE; None when neither is set.

    Raises:
        ConfigError: Both are set, or the file cannot be read.
    """
    value, file = environ.get(name), environ.get(f"{name}_FILE")
    if value and file:
        raise ConfigError([Problem("", f"both {name} and {name}_FILE are set; unset one")])
    if value:
        return value.strip()
    return read_secret_file(file) or None if file else None


def missing_secrets(config: Config, environ: Mapping[str, str]) -> list[Problem]:
    """Return a problem for each key and credential whose source is not there to read."""
    credentials = [c for p in config.providers for c in p.credentials if not c.disabled]
    problems: list[Problem] = []
    entries: list[Key | Credential] = [*config.client_keys, *config.management_keys, *credentials]
    for entry in entries:
        try:
            entry.resolve(environ)
        except ConfigError as error:
            problems.extend(error.problems)
    for credential in credentials:
        if (oauth2 := credential.oauth2) is None:
            continue
        where = f"credential {credential.id}"
        sources = (
            (oauth2.refresh_token, oauth2.refresh_token_env, oauth2.refresh_token_file),
            (oauth2.client_secret, oauth2.client_secret_env, oauth2.client_secret_file),
            (None, oauth2.access_token_env, oauth2.access_token_file),
        )
        for value, variable, file in sources:
            try:
                resolve_secret(value, variable, file, environ, where=where)
            except ConfigError as error:
                problems.extend(error.problems)
    return problems
