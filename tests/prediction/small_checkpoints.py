"""What the checkpoints of these tests say of themselves."""

TRUNK = dict(embed_dim=32, depth=2, num_heads=2, img_size=64)
NAMES = ["cat", "dog", "bird"]
IMAGES = dict(input_size=[3, 64, 64], mean=[0.5, 0.4, 0.3], std=[0.2, 0.25, 0.3])
