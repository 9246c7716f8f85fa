"""Gradients by hand beside autograd's and a float64 truth. Others take `compare` and its `Comparison`, and `difference.row`,
the verdict on one pair of tensors."""
