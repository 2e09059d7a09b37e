"""Stages that prepare data: each one reads files, writes files and says what it did. Training never calls them."""
