"""The entry point of the command: quiet when it is interrupted, from its first moment on.

What the command needs takes a moment to import, and nothing is written before that is done.
"""

from __future__ import annotations

import os
import signal
import sys

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# As the command says it when it is interrupted later.
_JSON = b"""{
 "format": "weightcast.error",
 "version": 1,
 "error": {
  "kind": "KeyboardInterrupt",
  "message": "interrupted",
  "exit_code": 130
 }
}
"""


def main() -> None:
    """Import the command line and run it; exit code 130 if interrupted meanwhile."""
    for number in _STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a job in the background
            signal.signal(number, _stop)
    from weightcast.cli import main as run

    try:
        run()
    finally:
        # Python's own end takes a moment, in which a signal would make a failure of what is done.
        for number in _STOPPING:
            signal.signal(number, signal.SIG_IGN)


def _stop(signum: int, frame: object) -> None:
    # An exception would surface wherever an import is, and some imports catch all of them.
    try:
        os.write(2, b"\rinterrupted\n" if os.isatty(2) else b"interrupted\n")
        if "--json" in sys.argv:
            os.write(1, _JSON)
    finally:
        os._exit(130)
