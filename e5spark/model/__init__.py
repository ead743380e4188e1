"""What the driver and the workers agree on before a run; imports neither Spark nor an engine."""
