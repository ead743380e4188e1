"""The engines: token ids in, pooled vectors out."""
