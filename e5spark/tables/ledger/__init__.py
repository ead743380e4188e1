"""What is known of a table of vectors: its manifest, its commits and what is staged for them."""
