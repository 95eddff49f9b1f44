"""
A gateway beside a fleet of hostile plugins, and what a test asks of both.

Each kind of damage has plugins of its own which a model's name brings into a request: `evil-late` meets every
plugin that is late. Steps that cost a deadline are spread over several addresses, so that none is ejected
before all were reached; those that write down that they were reached, which may take a busy machine some
attempts, have one each. Not here: the plugins (plugin.py), what is expected (tests/faults).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from tests.faults.hostile.plugin import CAPABILITIES
from tests.harness.observing import registrations
from tests.harness.plugin_process import new_root
from tests.harness.processes import Process, free_port
from tests.harness.topology import Gateway, make_config

from patchbay_gateway.kernel.keys import plugin_key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Future

    from tests.harness.topology import Services, Up

PROGRAM = Path(__file__).with_name("plugin.py")
PATIENCE = "20s"
"""Deadline of steps that are to be met."""
DEADLINE = "400ms"
"""Deadline of those that never are."""
ASKING = ("before", "after", "normalize", "translate")
WHOLE = (*ASKING, "answerbefore", "answertranslate", "answerafter", "answer")
STREAMED = (*ASKING, "answerbefore", "answertranslate", "answerafter", "chunk")
BESIDE = ("route", "complete", "think", "pick", "auth", "usage", "manage", "command", "models")
EVERY = (*WHOLE, "chunk", *BESIDE, "execute")
_TALKING = (("fail", "bug", "slow", "garbage", "unserved"), ("huge",))
"""Damage after which the process goes on as if nothing were; in one process each."""
HOWS = ("fail", "bug", "slow", "garbage", "unserved", "huge", "late", "hung", "die")
_SPREAD = (
    ASKING,
    ("answerbefore", "answertranslate", "answerafter", "answer"),
    ("chunk", "route", "complete"),
    ("pick", "auth", "usage", "manage"),
    ("think", "models", "command"),
    ("execute",),
)
"""Four failures of an address in a row are fine, five are not (plugins/breaker.py)."""
LIES = ("other-id", "future", "nothing")
STRICT = {
    "request_interceptor": "Fail",
    "response_interceptor": "Fail",
    "response_stream_interceptor": "Fail",
}


def text(letter: str, steps: Sequence[str]) -> str:
    """Return one word for each step."""
    return " ".join(f"{letter}-{step}-{letter}" for step in steps)


@dataclass(frozen=True, slots=True)
class Answers:
    """Two requests that went past the plugins of one kind of damage."""

    whole: httpx.Response
    streamed: httpx.Response

    def passed(self, letter: str, *, stream: bool) -> set[str]:
        """Return the steps that had their part in one of them."""
        answer = self.streamed if stream else self.whole
        assert answer.status_code == 200, answer.text
        steps = STREAMED if stream else WHOLE
        return {step for step in steps if f"{letter}-{step}-".upper() in answer.text}


class Fleet:
    """The plugins, and the gateway's entries for them."""

    def __init__(self, directory: Path) -> None:
        self.root = new_root()
        self.directory = directory
        self.entries: list[dict[str, Any]] = []
        self.states: dict[str, str] = {}
        """Plugin to the state that it is to come to."""
        self._processes: list[dict[str, Any]] = []
        self._keeper: Process | None = None

    def add(self, *plugins: dict[str, Any]) -> None:
        """Add a process with *plugins*: what plugin.Told is made of, and `entry`, the gateway's."""
        address = f"127.0.0.1:{free_port()}"
        for plugin in plugins:
            id_ = plugin["id"]
            plugin["met"] = str(self.directory / f"{id_}.met")
            self.entries.append({"id": id_, "address": address, **plugin.pop("entry")})
            self.states[id_] = plugin.pop("state", "ready")
        pid_file = str(self.directory / f"{plugins[0]['id']}.pid")
        self._processes.append({"address": address, "plugins": list(plugins), "pid_file": pid_file})

    def start(self) -> None:
        """Start what was added."""
        path = self.directory / "fleet.json"
        path.write_text(json.dumps(self._processes))
        keys = "\n".join(f"{id_}={plugin_key(self.root, id_).hex()}" for id_ in self.states)
        self._keeper = Process(
            "fleet",
            [sys.executable, PROGRAM, path],
            env={"PATCHBAY_PLUGIN_KEY": keys},
            directory=self.directory,
        )
        self._keeper.start()
        deadline = time.monotonic() + 90
        while not all(Path(each["pid_file"]).exists() for each in self._processes):
            assert time.monotonic() < deadline, self._keeper.tail()
            time.sleep(0.01)  # polls another process

    def stop(self) -> None:
        """Kill all of them."""
        if self._keeper is not None:
            self._keeper.stop()

    def orders(self, plugin: str, **how: str) -> str:
        """Say how a plugin is to break from now on; return the file that says so."""
        path = self.directory / f"{plugin}.json"
        new = path.with_suffix(".new")
        new.write_text(json.dumps(how))
        new.rename(path)
        return str(path)

    def signal(self, plugin: str, number: signal.Signals) -> None:
        """Send a signal to the process of *plugin*, the first of its process."""
        os.kill(int((self.directory / f"{plugin}.pid").read_text()), number)

    def start_again(self, plugin: str) -> None:
        """Start the process of *plugin* anew, which has died."""
        assert self._keeper is not None
        pid_file = self.directory / f"{plugin}.pid"
        old = pid_file.read_text()
        (self.directory / f"{plugin}.again").touch()
        self._keeper.signal(signal.SIGHUP)
        deadline = time.monotonic() + 90
        while pid_file.read_text() in {old, ""}:
            assert time.monotonic() < deadline, self._keeper.tail()
            time.sleep(0.01)  # polls another process

    def met(self, plugin: str) -> set[str]:
        """Return the steps that calls have reached."""
        path = self.directory / f"{plugin}.met"
        return set(path.read_text().split()) if path.exists() else set()


def evil_plugins(fleet: Fleet, hows: Sequence[str]) -> dict[str, str]:
    """Add plugins of each kind of damage; return model to the plugin whose executor has it."""
    routes: dict[str, str] = {}
    for group in _TALKING:
        if plugins := [_evil(how, how, EVERY) for how in group if how in hows]:
            fleet.add(*plugins)
        routes |= {f"exec-{how}": how for how in group if how in hows}
    if "hung" in hows:
        for number, steps in enumerate(_SPREAD, 1):
            fleet.add(_evil(f"hung-{number}", "hung", steps, DEADLINE))
        routes["exec-hung"] = f"hung-{len(_SPREAD)}"
    for how, deadline in (("late", DEADLINE), ("die", PATIENCE)):
        if how in hows:
            for step in EVERY:
                # Nobody uses its letter: beside the step in which it breaks it is well.
                fleet.add({**_evil(f"{how}-{step}", how, (step,), deadline), "letter": "x"})
            routes[f"exec-{how}"] = f"{how}-execute"
    if "die" in hows:
        # Before anybody can wait for it.
        fleet.states["die-models"] = ""
    cooks = [_healthy(f"cook-{how}", {"capabilities": ["executor"]}) for how in hows]
    for cook, how in zip(cooks, hows, strict=True):
        cook["format"] = f"own-{how}"
    fleet.add(*cooks)
    return routes


def _evil(id_: str, how: str, steps: Sequence[str], deadline: str = PATIENCE) -> dict[str, Any]:
    capabilities = sorted({CAPABILITIES[step] for step in steps})
    return {
        "id": id_,
        "how": how,
        "broken": list(steps),
        "format": f"own-{how}",
        "entry": {
            "priority": 5,
            "match": {"models": [f"evil-{how}", f"think-{how}"]},
            "capabilities": capabilities,
            "timeouts": _deadlines(deadline),
            "failure_policies": {"scheduler": "Ignore"},
        },
    }


def _healthy(id_: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": id_, "letter": "w", "entry": {"timeouts": _deadlines(PATIENCE), **entry}}


def _deadlines(deadline: str) -> dict[str, str]:
    return dict.fromkeys(sorted(set(CAPABILITIES.values()) - {"executor"}), deadline)


def strict_plugins(fleet: Fleet) -> None:
    """Add two plugins that must be passed and break as ordered; `tight` has no time."""
    for id_, deadline in (("strict", PATIENCE), ("tight", DEADLINE)):
        entry = {
            "priority": 5,
            "match": {"models": [id_]},
            "capabilities": [*STRICT, "scheduler"],
            "failure_policies": STRICT,
            "timeouts": _deadlines(deadline),
        }
        fleet.add({"id": id_, "orders": fleet.orders(id_), "entry": entry})


def _hosts(entry: Mapping[str, Any], *, alone: bool) -> int:
    """Return how many register with a plugin in one process: a scheduler alone, or all that there are."""
    declared = set(entry.get("capabilities", ("scheduler", "usage_plugin")))
    schedulers = 0 if declared.isdisjoint({"scheduler", "model_registrar"}) else 1
    return schedulers if alone else 1 + schedulers + ("usage_plugin" in declared)


class World:
    """All processes of one topology."""

    def __init__(
        self, directory: Path, kind: type[Up | Services], hows: Sequence[str], *, lies: bool
    ) -> None:
        """
        Args:
            directory: Of everything.
            kind: Of the gateway.
            hows: Kinds of damage that there are plugins for.
            lies: Whether there are plugins that lie in the handshake.
        """
        self.hows = hows
        self.fleet = Fleet(directory)
        routes = evil_plugins(self.fleet, hows)
        strict_plugins(self.fleet)
        for lie in LIES if lies else ():
            entry = {"match": {"models": ["evil-lie"]}}
            self.fleet.add(
                {"id": lie, "how": lie, "broken": ["register"], "entry": entry, "state": "refused"}
            )
        own = {"priority": 1, "failure_policies": {"scheduler": "Ignore"}}
        self.fleet.add({**_healthy("well", own), "routes": routes})
        # So that an executor that hangs is given up while somebody waits: 10 s later than it should itself.
        streaming = {"first_byte_timeout": "1s", "idle_timeout": "1s"}
        config = make_config(
            "http://127.0.0.1:9/v1", plugins=self.fleet.entries, streaming=streaming
        )
        aliases = ["strict", "tight", "evil-lie", *(f"evil-{how}" for how in hows)]
        config["providers"][0]["models"] = [
            "echo",
            *({"name": "echo", "alias": a} for a in aliases),
        ]
        # Executors that are well, each in a format whose thinking applier is broken.
        config["providers"] += [
            {"name": f"own-{how}", "plugin": f"cook-{how}", "models": [f"think-{how}"]}
            for how in hows
        ]
        self.gateway: Gateway = kind(
            directory, config, {"PATCHBAY_PLUGINS_KEY": self.fleet.root.hex()}
        )
        self.client = httpx.Client(timeout=90, verify=False)
        self._pool = ThreadPoolExecutor(8)
        self._answers: dict[str, Answers] = {}

    def start(self) -> None:
        """Start everything; those that are to hang do so from the end of it."""
        self.fleet.start()
        # Without the wait for every plugin, some of which never come.
        Gateway.start(self.gateway)
        self.wait(lambda: self._unsettled() == {})
        self.wait(self._choosing)
        self.wait(lambda: self.post("hi").status_code == 200)
        if "hung" in self.hows:
            # Once well, so that what is asked once only is known of them.
            assert self.think("hung").status_code == 200
            self.wait(lambda: self.manage("hung-4").status_code == 200)
            for number in range(1, len(_SPREAD) + 1):
                self.fleet.signal(f"hung-{number}", signal.SIGSTOP)
        # These take the gateway's 11 seconds, whatever else happens.
        self.hanging: dict[tuple[str, bool], Future[httpx.Response]] = {
            (how, stream): self._pool.submit(self.post, "hi", f"exec-{how}", stream=stream)
            for how in ("late", "hung")
            if how in self.hows
            for stream in (False, True)
        }

    def stop(self) -> None:
        """Stop everything."""
        self.fleet.stop()
        self.gateway.stop()
        self._pool.shutdown()
        self.client.close()

    def wait(self, done: Callable[[], bool], limit: float = 60.0) -> None:
        """Wait until *done*; it asks other processes."""
        deadline = time.monotonic() + limit
        while not done():
            assert time.monotonic() < deadline, self._unsettled()
            time.sleep(0.05)

    def _unsettled(self) -> dict[str, Any]:
        known = self.known()
        return {
            id_: known[id_]
            for id_, state in self.fleet.states.items()
            if state and [a["state"] for a in known[id_]["addresses"]] != [state]
        }

    def _choosing(self) -> bool:
        """Whether each scheduler has registered with each plugin that it may call; only its log tells."""
        for name, process in self.gateway.processes.items():
            if name != "up" and not name.startswith("scheduler"):
                continue
            found = registrations(process)
            for entry in self.fleet.entries:
                hosts = _hosts(entry, alone=name != "up")
                if self.fleet.states[entry["id"]] == "ready" and found[entry["id"]] < hosts:
                    return False
        return True

    def known(self) -> dict[str, dict[str, Any]]:
        """Return what the management API says of plugins."""
        found = self.client.get(
            f"{self.gateway.management_url}/v0/management/plugins", headers=self.operator
        )
        return {plugin["id"]: plugin for plugin in found.json()}

    @property
    def operator(self) -> dict[str, str]:
        """Headers of an operator."""
        return {"authorization": f"Bearer {self.gateway.management_key}"}

    def post(
        self, said: str, model: str = "echo", *, headers: dict[str, str] | None = None, **more: Any
    ) -> httpx.Response:
        """Ask in the OpenAI dialect."""
        return self.client.post(
            f"{self.gateway.base_url}/v1/chat/completions",
            json={"model": model, "messages": [{"role": "user", "content": said}], **more},
            headers=self.gateway.headers() if headers is None else headers,
        )

    def answers(self, how: str) -> Answers:
        """Return what came of requests past all plugins of one kind of damage, which are made once."""
        if how not in self._answers:
            self._answers[how] = self._ask(how)
        return self._answers[how]

    def _ask(self, how: str) -> Answers:
        whole, streamed = (
            self.post(f"{text('e', steps)} {text('w', steps)}", f"evil-{how}", stream=stream)
            for stream, steps in ((False, WHOLE), (True, STREAMED))
        )
        return Answers(whole, streamed)

    def met(self, how: str, step: str) -> bool:
        """
        Whether a call has reached the plugin that breaks in *step* by *how*.

        One that has little time may be given up on its way, where the machine is busy: it is made again.
        """
        again: dict[str, Callable[[], object]] = {
            "auth": lambda: self.post("hi", headers={"x-hostile-user": "w"}),
            "think": lambda: self.think(how),
            "manage": lambda: self.manage(self.who(how, step)),
            "command": lambda: self.command(self.who(how, step)),
        }
        for _ in range(3 if how == "late" else 0):
            if step in self.fleet.met(self.who(how, step)):
                break
            again.get(step, lambda: self._ask(how))()
        return step in self.fleet.met(self.who(how, step))

    def think(self, how: str) -> httpx.Response:
        """Ask for thinking in a format that a broken applier is to write."""
        return self.post("e-think-e", f"think-{how}(high)")

    def manage(self, plugin: str) -> httpx.Response:
        """Ask for a plugin's route."""
        url = f"{self.gateway.management_url}/v0/management/{plugin}/do"
        return self.client.post(url, headers=self.operator)

    def command(self, plugin: str) -> httpx.Response:
        """Run a plugin's command line."""
        url = f"{self.gateway.management_url}/v0/management/plugins/{plugin}/exec"
        return self.client.post(url, headers=self.operator, json={"args": []})

    def who(self, how: str, step: str) -> str:
        """Return the plugin that breaks in *step* by *how*."""
        if how in {"late", "die"}:
            return f"{how}-{step}"
        if how == "hung":
            return next(f"hung-{n}" for n, steps in enumerate(_SPREAD, 1) if step in steps)
        return how
