"""What is made of finished runs: tables with paired tests, curves, pages. Nothing here trains."""
