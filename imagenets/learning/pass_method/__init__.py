"""PASS, the benchmark paper's own method, from pre-training to label maps; docs/pass.md."""
