"""Data sets as arrays, image files, augmentation, and batches."""
