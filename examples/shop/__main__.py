"""Runs the demonstration, or with arguments one part of it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from zfabric.examples.shop.demo import demonstrate
from zfabric.examples.shop.parts import PARTS, run

if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] in PARTS:
        asyncio.run(run(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
    elif len(sys.argv) <= 2:
        sys.exit(asyncio.run(demonstrate(int(sys.argv[1]) if len(sys.argv) == 2 else 60)))
    else:
        sys.exit(f"usage: python -m zfabric.examples.shop [ORDERS] | {'|'.join(PARTS)} FABRIC FOLDER")
