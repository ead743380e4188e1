"""Where vectors live: the tables that texts are read from and vectors are written to."""
