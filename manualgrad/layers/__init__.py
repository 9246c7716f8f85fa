"""Dense layers whose backward pass is written by hand."""
