"""Models of `nn.Linear` made models of `Dense`, and back."""
