"""Zero-shot segmentation: patches named by text with CLIP and SigLIP; docs/zero_shot.md."""
