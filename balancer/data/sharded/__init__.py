"""A store on disk: a prepared table, one file a column, in shards of whole entities.

Public names: `StoreFolder`, `is_store` (`folder`). `balancer.data.preparing` writes such a folder.
"""
