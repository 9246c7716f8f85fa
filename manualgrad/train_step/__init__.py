"""The four steps of training by hand, without an autograd graph: forward, loss, backpropagation, update."""
