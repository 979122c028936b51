"""Networks by name, and the weights that people have for them."""
