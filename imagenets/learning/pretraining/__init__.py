"""PASS, the benchmark paper's own unsupervised pre-training and pixel attention; docs/methods.md, PASS."""
