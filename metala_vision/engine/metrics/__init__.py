"""What is measured of a model, and the pictures of it."""
