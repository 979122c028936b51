"""Clusters of foregrounds as labels: k-means on features made by hand, or on those of a network."""
