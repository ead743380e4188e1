"""Small files beside a table, on any file system that Spark writes to.

What each place guarantees for ``create`` and ``put``:

==========================  ===========================================================
local disk                  both atomic (a hard link, a rename)
HDFS, ViewFS                both atomic (a rename in the name node)
S3 through s3a              ``put`` atomic; ``create`` by If-None-Match: from Hadoop 3.4.2 on, where
                            the store knows it; otherwise it looks first and then writes
Google Cloud Storage        both atomic (an object generation)
any other                   by a rename; as atomic as its Hadoop connector makes that
==========================  ===========================================================
"""
