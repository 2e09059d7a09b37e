"""The frame that every stage of preparation runs in."""
