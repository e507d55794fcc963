"""Benchmarks of zfabric beside its peers: `python -m benchmarks --help`."""
