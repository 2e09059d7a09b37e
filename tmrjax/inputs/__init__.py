"""What a method may ask of a post, one file each, and how posts become batches (§3.2, §4.1)."""
