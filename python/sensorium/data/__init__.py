"""Real data that arrives with pip."""
