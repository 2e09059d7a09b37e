"""Tasks: entities and relations, with their metrics and reports."""
