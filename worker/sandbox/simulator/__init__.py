"""A simulator of the SpeedPix service: signed calls, expiring addresses, scripted faults.

It is written independently of the code that calls it, so that each verifies the other.
``docs/simulator.md`` describes knobs, answers and faults.
"""

from worker.sandbox.simulator.controls import Controls
from worker.sandbox.simulator.script import ScriptError
from worker.sandbox.simulator.server import EXAMPLE_ID, Simulator
from worker.sandbox.simulator.standalone import run

__all__ = ["EXAMPLE_ID", "Controls", "ScriptError", "Simulator", "run"]
