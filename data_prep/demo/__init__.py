"""The generated world of the demo."""
