"""A run: its config, its folder, its steps, and the checkpoints it leaves."""
