"""Speed and memory of a training step, measured against PyTorch's own ways. `manualgrad bench` runs it."""
