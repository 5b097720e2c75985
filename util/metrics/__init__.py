"""Image quality: scores, the networks that some need, and their statistics."""
