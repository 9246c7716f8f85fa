"""What the page says of each part of a training step: a section for each."""
