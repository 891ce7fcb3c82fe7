"""ONNX Runtime, told before it is loaded that it must not report to its maker.

Since 1.31 its import leaves a device id and a queue of events in the user's cache directory, unless
this is in the environment by then; switching it off afterwards is too late.
"""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # noqa: TID251

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as states

__all__ = ["onnxruntime", "states"]
