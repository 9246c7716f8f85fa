"""`BackpropMonitor`: errors, gradients and updates of every layer while Lightning trains."""
