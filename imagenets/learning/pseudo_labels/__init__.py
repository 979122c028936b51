"""From attended features to labels of pixels: clusters, the threshold, label maps; docs/methods.md, PASS."""
