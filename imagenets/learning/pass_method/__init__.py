"""PASS, the benchmark paper's own method, from pre-training to label maps; docs/methods.md, PASS."""
