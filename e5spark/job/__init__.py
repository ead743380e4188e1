"""One run, from a job file to a report."""
