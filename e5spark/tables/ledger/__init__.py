"""What e5spark knows of a table of vectors: its manifest, its commits and what is staged."""
