"""Models: parameters in a nested dict, and functions of them."""
