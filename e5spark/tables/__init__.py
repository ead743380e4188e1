"""The tables that texts are read from and vectors are written to."""
