"""From images to predictions: features, networks, clusters."""
