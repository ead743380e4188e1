"""Mutated job files, model directories and state directories: ``python -m tests.fuzz`` runs them.

A case is a number: kind, seed and number give the same mutation on every machine. It passes if it
ends in an error of ``e5spark.errors``, or in the right result; what that is, each kind says. Cases
run in processes of their own, so that one that hangs or ends its process is found and named.
"""
