"""The fixtures of the plugin, also where zfabric is not installed."""

from __future__ import annotations

from zfabric.testing.plugin import fabric, fabric_pair, private_runtime_dir, real_fabric

__all__ = ["fabric", "fabric_pair", "private_runtime_dir", "real_fabric"]
