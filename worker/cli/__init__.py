"""The ``harvester`` command."""

import os
import signal

# The first process of a container has no default actions: the system drops SIGTERM until a handler
# is set. It is set here, before slow imports; other processes also exit with code 143.
if os.getpid() == 1:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
