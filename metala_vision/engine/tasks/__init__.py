"""What is learned: the models of each task as mmengine's Runner takes them."""
