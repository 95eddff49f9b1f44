"""
Plugins from where an author keeps them: a file, or a module that can be imported.

Not here: serving them (`patchbay.serve`).
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

from patchbay import errors
from patchbay.capability import Plugin

if TYPE_CHECKING:
    from types import ModuleType


def load_plugins(target: str) -> list[Plugin]:
    """
    Return the plugins of *target*, made without arguments.

    Args:
        target: `path/to/file.py` or `package.module`, with `:Name` for one class of several.

    Raises:
        InvalidRequest: There is no such file or module, it cannot be imported, or it has no plugin.
    """
    where, _, name = target.rpartition(":") if _names_a_class(target) else (target, "", "")
    module = _load_file(Path(where)) if where.endswith(".py") else _load_module(where)
    if name:
        found = getattr(module, name, None)
        if not _is_plugin(found):
            raise errors.InvalidRequest(f"{where} has no plugin class {name}", reason="NO_PLUGIN")
        classes = [cast("type[Plugin]", found)]
    else:
        classes = [
            found
            for found in vars(module).values()
            if _is_plugin(found) and found.__module__ == module.__name__
        ]
    if not classes:
        raise errors.InvalidRequest(
            f"{where} has no plugin: a class that inherits from a capability and sets `id`",
            reason="NO_PLUGIN",
        )
    return [plugin() for plugin in classes]


def _names_a_class(target: str) -> bool:
    before, separator, after = target.rpartition(":")
    # A drive letter is no module.
    return bool(separator) and len(before) > 1 and after.isidentifier()


def _is_plugin(found: object) -> bool:
    return (
        inspect.isclass(found)
        and issubclass(found, Plugin)
        and isinstance(getattr(found, "id", None), str)
        and not inspect.isabstract(found)
    )


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise errors.InvalidRequest(f"there is no file {path}", reason="NO_PLUGIN")
    # What lies beside the file can be imported, as if Python had been given it.
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise errors.InvalidRequest(f"{path} needs {error}", reason="NO_PLUGIN") from None
    except SyntaxError as error:
        raise errors.InvalidRequest(
            f"{path}:{error.lineno}: {error.msg}", reason="NO_PLUGIN"
        ) from None
    return module


def _load_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise errors.InvalidRequest(
            f"cannot import {name}: {error}; a file's name ends in .py", reason="NO_PLUGIN"
        ) from None
