from __future__ import annotations

import os

from hypothesis import settings

# tests share the cores: threads that spin while they wait would take them from one another
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# no deadline: these cores are shared; on CI the same cases every time, so that red means a change
settings.register_profile("shared", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "shared")
