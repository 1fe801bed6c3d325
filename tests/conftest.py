from __future__ import annotations

import os

# tests share the cores: threads that spin while they wait would take them from one another
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
