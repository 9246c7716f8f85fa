"""A Trace, shown: on a page."""
