"""A store on disk: a prepared table, one file a column, in shards of whole entities.

Public name: `StoreFolder` (`folder`). `balancer.data.preparing` writes such a folder.
"""
