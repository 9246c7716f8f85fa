"""One training step as a self-contained web page."""
