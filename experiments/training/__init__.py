"""What a training is made of: environments and models, what is watched and kept, what it will cost."""
