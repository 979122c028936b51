"""Batched inference shared by all methods: decode in workers, run the network, write label maps or arrays."""
