"""What every room needs: errors, whole files, disk space, locks, downloads, progress."""
