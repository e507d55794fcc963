"""For tests of programs that use zfabric: a fabric in memory, virtual time, a bad network, pytest fixtures::

    from zfabric.testing import MemoryFabric, run

    def test_late_reading_raises_the_alarm() -> None:
        async def scenario() -> None:
            async with MemoryFabric(seed=1) as fabric:
                sensor, panel = await fabric.open("sensor"), await fabric.open("panel")
                ...
                fabric.partition({"sensor"}, {"panel"})
                await fabric.clock.advance(30)
                ...

        run(scenario())

The pytest plugin adds the fixtures `fabric`, `fabric_pair` and `real_fabric`.
"""

from zfabric.testing.loop import Deadlock, VirtualClockLoop, eventually, run
from zfabric.testing.memory import Clock, MemoryFabric
from zfabric.testing.network import Faults
from zfabric.testing.real import RealFabric

__all__ = ["Clock", "Deadlock", "Faults", "MemoryFabric", "RealFabric", "VirtualClockLoop", "eventually", "run"]
