"""What a method may ask of a post, and how posts become batches."""
