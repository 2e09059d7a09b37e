"""Pictures: from a file to what a picture encoder reads, and features that are kept."""
