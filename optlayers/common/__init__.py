"""What many use: caches, locks, modes of PyTorch, tensors, messages, pages, compiled functions on disk."""
