"""From images through a network to label maps or arrays, on one process or many."""
