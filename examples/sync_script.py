"""The fabric without asyncio: the same names, blocking, for scripts and threads."""

from __future__ import annotations

import sys

import zfabric.sync

WORDS = ("fabric", "thread", "loom")


def main(fabric: str = "words") -> None:
    """Two nodes in one script; in real life they are two programs."""
    with zfabric.sync.Node("writer", fabric=fabric) as writer, zfabric.sync.Node("reader", fabric=fabric) as reader:
        incoming = reader.subscribe("words.#")
        outgoing = writer.publisher("words.english")
        outgoing.wait_for(subscribers=1, timeout=10)
        for word in WORDS:
            outgoing.publish(word)
        for _ in WORDS:
            message = incoming.receive(timeout=5)
            print(f"{message.source} wrote {message.value!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
