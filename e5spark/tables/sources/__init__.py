"""The tables that texts are read from."""
