"""A Trace, shown: in the terminal, as a plot, on a page."""
