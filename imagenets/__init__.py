"""The ImageNet-S toolbox as a library: classes, masks, contingency tables, matchings and scores."""
