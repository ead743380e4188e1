"""The engines: token ids in, pooled vectors out.

An engine is a module of this package and an entry of the same name in ``e5spark.model.engines``.
The module has a function ``load(files, *, precision, device, threads)``, which returns a
``LoadedModel``.
"""
