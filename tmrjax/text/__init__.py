"""Text: words, word pieces, tags, markers, windows, tokenizers (§3.2, §4.1)."""
