"""Used by every other package: errors, whole files, disk space, locks, downloads, progress, workers."""
