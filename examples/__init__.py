"""Examples that ship with zfabric: `python -m zfabric.examples.telemetry` is the one to start with."""
