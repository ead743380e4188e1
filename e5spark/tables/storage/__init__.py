"""Small files beside a table, on any file system that Spark writes to.

What each file system guarantees for ``create`` and ``put``:

==========================  ===========================================================
local disk                  both atomic (a hard link, a rename)
HDFS, ViewFS                both atomic (a rename in the name node)
S3 through s3a              ``put`` atomic; ``create`` uses If-None-Match from Hadoop 3.4.2 on, if
                            the store supports it; otherwise it checks first and then writes
Google Cloud Storage        both atomic (an object generation)
any other                   both by a rename, as atomic as the Hadoop connector makes it
==========================  ===========================================================
"""
