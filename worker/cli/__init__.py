"""The ``harvester`` command."""

import os
import signal

# The first process of a container has no default action: until a handler is set, the system drops
# SIGTERM. Here, before anything slow is imported; exit code 143 is that of any other process.
if os.getpid() == 1:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
