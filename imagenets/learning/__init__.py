"""What `methods/` runs: networks, batched inference, training, and the methods, one folder each."""
