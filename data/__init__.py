"""Dataset format, readers, checks, decoding and augmentation: pure functions over files and tensors."""
