"""Make the model importable, as Salt's loader would."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT / "_modules", ROOT / "tests"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
