"""Reading the files that others have released."""
