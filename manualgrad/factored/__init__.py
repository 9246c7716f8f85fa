"""Gradients that stay an outer product: dC/dw = delta a^T, kept as delta and a."""
