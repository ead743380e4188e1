"""Small files beside a table, on any file system that Spark writes to."""
