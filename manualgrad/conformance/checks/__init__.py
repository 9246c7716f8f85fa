"""The seven kinds of checks that `check_backward` runs."""
