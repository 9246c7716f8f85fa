"""Losses whose derivative dC/da is written by hand."""
