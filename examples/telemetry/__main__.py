"""`python -m zfabric.examples.telemetry`: the whole demo, or one part of it by name."""

from __future__ import annotations

import sys

from .demo import main

if __name__ == "__main__":
    sys.exit(main())
