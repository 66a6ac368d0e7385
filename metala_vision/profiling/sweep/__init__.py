"""Speed and memory over resolutions: measured in processes of their own, kept, and drawn."""
