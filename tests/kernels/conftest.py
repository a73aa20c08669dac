"""The interpreter's tests are collected only in the process that `support/interpreting.py` starts."""

import os

collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]
