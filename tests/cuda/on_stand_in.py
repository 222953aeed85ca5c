"""Run a module as a program on the stand-in for a driver: python -m tests.cuda.on_stand_in MODULE.

The arguments after it are the module's.
"""

from __future__ import annotations

import runpy
import sys

from tests.cuda import stand_in


def main() -> None:
    stand_in.StandIn(stand_in.build()).use_kernels(stand_in.build_host_kernels())
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
