"""Labels of pixels from the nearest embeddings of annotated regions; docs/methods.md, Distance matching."""
