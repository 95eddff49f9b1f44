# ruff: noqa: INP001 - a script of the images, no package
"""
Health check of a container: exit status 0 if an address answers 200. Images have neither shell nor curl.

    python3 /opt/patchbay/probe.py 8081/readyz
"""

import http.client
import sys


def main(target: str) -> int:
    """Return 0 if *target*, a port and a path on this host, answers 200 within two seconds."""
    port, _, path = target.partition("/")
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=2)
    try:
        connection.request("GET", f"/{path}")
        answer = connection.getresponse()
        body = answer.read(500)
    except OSError as error:
        sys.stdout.write(f"{error}\n")
        return 1
    finally:
        connection.close()
    sys.stdout.write(f"{answer.status} {body.decode(errors='replace')}\n")
    return 0 if answer.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
