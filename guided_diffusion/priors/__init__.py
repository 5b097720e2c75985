"""Priors: whatever answers model(x_t, t)."""
