"""Raw posts in, entities and relations out."""
