"""The state that e5spark keeps for a table of vectors: manifest, commits and staged rows."""
