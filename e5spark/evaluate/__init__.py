"""Judges vectors that the job wrote: retrieval, similarity, bitext, re-ranking, and probes.

Nothing here runs on an executor, apart from the search, which ``e5spark.search`` does.
"""
