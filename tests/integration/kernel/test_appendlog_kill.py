"""The append log of a process that is killed in the middle of its work."""

from __future__ import annotations

import random
import subprocess
import sys
import time

from patchbay_gateway.kernel.appendlog import AppendLog

WRITER = """
import os, random, sys
from pathlib import Path
from patchbay_gateway.kernel.appendlog import AppendLog

log = AppendLog(Path(sys.argv[1]), segment_bytes=20_000)
rng = random.Random(0)
while True:
    start = log.last_sequence + 1
    batch = [b"%d:" % n + b"x" * rng.randrange(300) for n in range(start, start + rng.randrange(1, 40))]
    assert log.append(batch) == start
    os.write(1, b"%d\\n" % log.last_sequence)
"""


def test_kill_9_loses_nothing_that_append_returned_for(tmp_path):
    for _ in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        first_line = writer.stdout.readline()
        time.sleep(
            random.uniform(0, 0.05)
        )  # the instant of the kill is the random part of the test
        writer.kill()
        lines = [first_line, *writer.stdout.read().splitlines(keepends=True)]
        writer.wait()
        writer.stdout.close()
        acknowledged = int([line for line in lines if line.endswith(b"\n")][-1])

        log = AppendLog(tmp_path, segment_bytes=20_000)
        records = list(log.read())
        assert [sequence for sequence, _ in records] == list(range(1, len(records) + 1))
        assert all(payload.startswith(b"%d:" % sequence) for sequence, payload in records)
        assert log.last_sequence >= acknowledged
        log.close()
