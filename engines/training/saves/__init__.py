"""What a checkpoint keeps of a training: its parts, their copies in host memory, and the room for them."""
