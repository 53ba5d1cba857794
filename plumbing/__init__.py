"""What a training script needs and RLHF is not about: command lines, files, processes."""
