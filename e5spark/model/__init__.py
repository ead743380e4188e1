"""What the driver and the workers agree on before anything runs; knows no Spark and no engine."""
