"""The tables that vectors are written to."""
