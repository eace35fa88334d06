"""A simulator of the SpeedPix service: signed calls, expiring addresses, scripted mishaps.

It knows nothing of the code that calls it, so that each proves the other. Knobs, answers and
faults are described in ``docs/simulator.md``.
"""

from worker.sandbox.simulator.controls import Controls
from worker.sandbox.simulator.script import ScriptError
from worker.sandbox.simulator.server import EXAMPLE_ID, Simulator
from worker.sandbox.simulator.standalone import run

__all__ = ["EXAMPLE_ID", "Controls", "ScriptError", "Simulator", "run"]
