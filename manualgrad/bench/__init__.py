"""Speed and memory of a training step, measured against PyTorch's own ways: `measure` here, `manualgrad bench` in a shell."""

from manualgrad.bench.case import CaseError
from manualgrad.bench.measuring import measure
from manualgrad.bench.rows import Row, Rows


__all__ = ["CaseError", "Row", "Rows", "measure"]
