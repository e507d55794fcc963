"""The tests of zfabric."""
