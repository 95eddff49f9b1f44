"""
Medians over rounds, ratios between contenders, the Markdown table and the result files.

Not here: measuring.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from statistics import median
from typing import Any

Results = dict[str, Any]


def machine() -> dict[str, Any]:
    """Return what is needed to judge whether two result files may be compared."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "system": platform.system(),
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def one_line(result: Results) -> str:
    """Return one scenario's result for the terminal."""
    parts = [f"{result['rps']:9.1f}/s"]
    if "cpu_us" in result:
        parts.append(f"{result['cpu_us']:9.1f} us CPU")
    if "cpu_percent" in result:
        parts.append(f"{result['cpu_percent']:5.1f} %")
    for key, label in (("latency_us", "p50/p99"), ("first_token_us", "first"), ("gap_us", "gap")):
        if key in result:
            parts.append(f"{label} {_ms(result[key]['p50'])}/{_ms(result[key]['p99'])} ms")
    if "memory_peak_mb" in result:
        parts.append(f"{result['memory_peak_mb']:.0f} MB")
    if result["failures"]:
        parts.append(f"FAILED {result['failures']} of {result['sent']}: {result.get('sample', '')}")
    return "  ".join(parts)


def summarize(results: Results) -> None:
    """Add `median` to each contender: the same shape as one round, every number the median over rounds."""
    for told in results["contenders"].values():
        told["median"] = _median(
            [{k: v for k, v in r.items() if k != "ledger"} for r in told["rounds"]]
        )


def clean(results: Results) -> bool:
    """Tell whether Patchbay answered everything right and billed exactly what reached the upstream."""
    rounds = [told for one in results["contenders"].values() for told in one["rounds"]]
    return not any(
        any(s["failures"] for s in told["scenarios"].values()) or not told["ledger"]["equal"]
        for told in rounds
        if "ledger" in told
    )


def value(results: Results, contender: str, scenario: str, *keys: str) -> float | None:
    """Return one median; None where it was not measured or where answers failed."""
    told = results["contenders"].get(contender, {}).get("median", {})
    found: Any = told.get("scenarios", {}).get(scenario)
    if found is None or found["failures"] > 0.01 * max(1, found["answers"]):
        return None
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return None if found is None else float(found)


def markdown(results: Results) -> str:
    """Return the page: absolute figures, ratios, promises, ledgers."""
    lines = [
        "# Results",
        "",
        (
            f"{results['when']}; {results['machine']['cpu']}, kernel {results['machine']['kernel']}; "
            f"medians of {results['rounds']} round(s). All processes of a gateway, Valkey included, on one "
            "core; upstream and load on another. Ratios travel between machines, the figures do not."
        ),
        "",
        ", ".join(f"{name} {text}" for name, text in results["versions"].items()),
        "",
        *_absolute(results),
        "",
        *_ratios(results),
        *_pools(results),
        "",
        *_memory(results),
        "",
        *_promises(results),
        "",
        *_ledgers(results),
    ]
    for name, why in results.get("not_run", {}).items():
        lines.append(f"- not run: {name} ({why})")
    return "\n".join(lines).rstrip() + "\n"


def write(
    results: Results, table: str, directory: Path, *, name: str = "", latest: bool = True
) -> None:
    """Write the dated JSON and Markdown files, and latest.md if this is the whole bench."""
    directory.mkdir(exist_ok=True)
    stem = results["when"].replace(":", "").replace("-", "")[:13] + (f"-{name}" if name else "")
    (directory / f"{stem}.json").write_text(json.dumps(results, indent=1) + "\n")
    (directory / f"{stem}.md").write_text(table)
    if latest:
        (directory / "latest.md").write_text(table)


def _absolute(results: Results) -> list[str]:
    lines = [
        (
            "| | plain /s at 32 | CPU µs | /s at 128 | p50 / p99 ms at 1 | streams /s at 32 | CPU µs "
            "| 200 × 20 ms: CPU % | added first token p50 / p99 ms | gap p99 ms | start s |"
        ),
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, told in results["contenders"].items():

        def get(scenario: str, *keys: str, of: str = name) -> float | None:
            return value(results, of, scenario, *keys)

        added = []
        for key in ("p50", "p99"):
            own = get("paced-200", "first_token_us", key)
            base = value(results, "direct", "paced-200", "first_token_us", key)
            added.append(None if own is None else own - (base or 0) if name != "direct" else own)
        cells = [
            _number(get("plain-32", "rps")),
            _number(get("plain-32", "cpu_us")),
            _number(get("plain-128", "rps")),
            _pair(get("plain-1", "latency_us", "p50"), get("plain-1", "latency_us", "p99")),
            _number(get("stream-32", "rps")),
            _number(get("stream-32", "cpu_us")),
            _number(get("paced-200", "cpu_percent")),
            _pair(*added),
            _ms(get("paced-200", "gap_us", "p99")),
            _number(told["median"].get("start_s") if name != "direct" else None),
        ]
        lines.append(f"| {told['title']} | " + " | ".join(cells) + " |")
    return lines


def _ratios(results: Results) -> list[str]:
    pairs = [
        (a, b)
        for a in ("up", "services")
        for b in ("passthrough", "litellm", "portkey", "up")
        if a != b and a in results["contenders"] and b in results["contenders"]
    ]
    if not pairs:
        return []
    lines = [
        "| ratio | plain /s at 32 | at 128 | streams /s at 32 | CPU a plain answer | CPU a stream |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for a, b in pairs:
        cells = [
            _ratio(value(results, a, scenario, key), value(results, b, scenario, key))
            for scenario, key in (
                ("plain-32", "rps"),
                ("plain-128", "rps"),
                ("stream-32", "rps"),
                ("plain-32", "cpu_us"),
                ("stream-32", "cpu_us"),
            )
        ]
        lines.append(f"| {a} ÷ {b} | " + " | ".join(cells) + " |")
    return lines


def _pools(results: Results) -> list[str]:
    """Return what a larger pool costs; the bound is 1.2 times a pool of one."""
    names = [name for name in results["contenders"] if name.startswith("pool-")]
    if not names:
        return []
    lines = [
        "| credentials | load | /s | CPU µs | ÷ the smallest pool | within 1.2 | idle MB |",
        "|--:|---|--:|--:|--:|---|--:|",
    ]
    for name in names:
        idle = sum(results["contenders"][name]["median"].get("idle_mb", {}).values())
        for scenario in results["contenders"][name]["median"].get("scenarios", {}):
            one = value(results, names[0], scenario, "cpu_us")
            cost = value(results, name, scenario, "cpu_us")
            over = None if cost is None or not one else cost / one
            cells = [
                name.removeprefix("pool-"),
                scenario,
                _number(value(results, name, scenario, "rps")),
                _number(cost),
                _number(over),
                "–" if over is None else "yes" if over <= 1.2 else "**no**",
                f"{idle:.0f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def _memory(results: Results) -> list[str]:
    lines = [
        "| MB resident | idle | under load | idle again | by process under load |",
        "|---|--:|--:|--:|---|",
    ]
    for name, told in results["contenders"].items():
        medians = told["median"]
        if name == "direct" or "idle_mb" not in medians:
            continue
        loaded = max(medians["scenarios"].values(), key=lambda s: s.get("memory_peak_mb", 0))
        processes = ", ".join(f"{n} {mb:.0f}" for n, mb in loaded.get("memory_mb", {}).items())
        lines.append(
            f"| {told['title']} | {sum(medians['idle_mb'].values()):.0f} "
            f"| {loaded.get('memory_peak_mb', 0):.0f} "
            f"| {sum(medians['after_mb'].values()):.0f} | {processes} |"
        )
    for name, told in results["contenders"].items():
        for one in told["rounds"]:
            if series := one["scenarios"].get("soak", {}).get("memory_series_mb"):
                answers = one["scenarios"]["soak"]["answers"]
                along = ", ".join(f"{mb:.0f}" for mb in series)
                lines += ["", f"{name}, MB along {answers:,} answers: {along}"]
    return lines if len(lines) > 2 else []


def _promises(results: Results) -> list[str]:
    def over(a: str, b: str, scenario: str) -> float | None:
        x, y = value(results, a, scenario, "rps"), value(results, b, scenario, "rps")
        return None if x is None or not y else x / y

    def peak(contender: str, process: str = "") -> float | None:
        scenarios = results["contenders"].get(contender, {}).get("median", {}).get("scenarios", {})
        values = [
            s["memory_mb"].get(process) if process else s["memory_peak_mb"]
            for s in scenarios.values()
            if "memory_mb" in s
        ]
        known = [v for v in values if v is not None]
        return max(known) if known else None

    rows: list[tuple[str, float | None, str, float]] = [
        ("up ÷ pass-through, plain at 32", over("up", "passthrough", "plain-32"), "≥", 0.33),
        ("up ÷ Portkey, plain at 32", over("up", "portkey", "plain-32"), "≥", 2.5),
        ("up ÷ LiteLLM, plain at 32", over("up", "litellm", "plain-32"), "≥", 25),
        ("up ÷ pass-through, streams", over("up", "passthrough", "stream-32"), "≥", 0.3),
        ("up ÷ LiteLLM, streams", over("up", "litellm", "stream-32"), "≥", 40),
        ("services ÷ LiteLLM, plain at 32", over("services", "litellm", "plain-32"), "≥", 5),
        ("services ÷ LiteLLM, streams", over("services", "litellm", "stream-32"), "≥", 15),
        ("edge, MB under load", peak("services", "edge"), "<", 100),
        ("up, MB under load", peak("up"), "<", 150),
    ]
    lines = ["| bound | measured | holds |", "|---|--:|---|"]
    for text, measured, relation, bound in rows:
        if measured is not None:
            holds = measured >= bound if relation == "≥" else measured < bound
            lines.append(
                f"| {text} {relation} {bound:g} | {_number(measured)} | {'yes' if holds else '**no**'} |"
            )
    return lines if len(lines) > 2 else []


def _ledgers(results: Results) -> list[str]:
    lines = []
    for name, told in results["contenders"].items():
        for number, one in enumerate(told["rounds"], 1):
            if "ledger" in one:
                lines.append(
                    f"- ledger of {name}, round {number}: {one['ledger']['verdict']}, "
                    f"{one['ledger']['behind_s']} s after the last answer"
                )
        failed: dict[str, int] = {}
        for one in told["rounds"]:
            for scenario, result in one["scenarios"].items():
                failed[scenario] = failed.get(scenario, 0) + result["failures"]
        for scenario, count in failed.items():
            if count:
                lines.append(
                    f"- {name}, {scenario}: {count} wrong answers; its figures are left out above 1 %"
                )
    return lines


def _median(items: list[Any]) -> Any:
    first = items[0]
    if isinstance(first, dict):
        keys = [k for k in first if all(isinstance(i, dict) and k in i for i in items)]
        return {k: _median([i[k] for i in items]) for k in keys}
    if isinstance(first, int | float) and not isinstance(first, bool):
        return round(median(items), 3)
    return first


def _number(x: float | None) -> str:
    if x is None:
        return "–"
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"


def _ms(us: float | None) -> str:
    return "–" if us is None else f"{us / 1000:.3g}" if us < 100_000 else f"{us / 1000:.0f}"


def _pair(a: float | None, b: float | None) -> str:
    return "–" if a is None else f"{_ms(a)} / {_ms(b)}"


def _ratio(a: float | None, b: float | None) -> str:
    return "–" if a is None or not b else f"{a / b:.3g}"
