"""From a copy of ImageNet to ImageNet-S: layouts, image folders, annotations, verification."""
