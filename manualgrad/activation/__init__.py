"""What an activation function is: sigma with its derivative sigma', the built-in ones, and who is idle.

Layers take `activation_named` and `identity` from `built_in`."""
