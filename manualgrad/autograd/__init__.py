"""Where the package meets PyTorch's autograd: applying a Function, computing by autograd instead, autocast."""
