"""What the scripts share: how they start and end, arguments, progress bars."""
