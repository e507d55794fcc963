"""Patterns of the ZeroMQ Guide, and pipelines, on public names only; import it as `zfabric.patterns`."""
