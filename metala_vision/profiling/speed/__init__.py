"""Times of models side by side, and the floor under them."""
