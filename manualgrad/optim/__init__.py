"""Gradient descent: w := w - eta dC/dw, on dense and on factored gradients."""
