#!/usr/bin/env python3
"""Set-up and commands for developers, from nothing but a clone and Python 3.10 or newer: `python3 dev.py --help`."""
import platform
import sys
from pathlib import Path

if __name__ == "__main__":
    # Before anything of devtools/ is read, which an older Python may not understand.
    if sys.version_info < (3, 10):  # noqa: UP036
        sys.exit(f"dev.py: Python {platform.python_version()} is too old: use Python 3.10 or newer")

    # Python does so itself, but not under -I or -P.
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from devtools.commands import main

    sys.exit(main(sys.argv[1:]))
