"""Where the package meets PyTorch's autograd: applying a Function, leaving the backward pass to autograd, autocast, and
PyTorch's private questions. Layers and losses take `apply`, `switch` and `autocast`; every room may ask `torch_state`."""
