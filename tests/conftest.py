"""What holds for every test: one thread, and the fixtures of ``tests/support``.

The fixtures live for the whole session, so that a module may build one store and start one server
for all its tests.  Nothing here imports torch for the tests that do without.
"""

from __future__ import annotations

import os

# Networks this small gain nothing from threads, which wait for each other where tests run side by
# side.  This stands before the first import of torch, and the processes that tests start inherit
# it.
os.environ["OMP_NUM_THREADS"] = "1"

pytest_plugins = ["tests.support.server", "tests.support.stores"]
