"""Every gradient by hand beside autograd's, and beside a float64 truth."""
