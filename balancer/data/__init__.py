"""From a table of transactions to arrays: roles, reading, checks, time split, causal fields, the transaction store; and a simulator.

Public names: `resolve_spec` (`roles`), `Spec`, `SplitSpec` (`spec`), `load_dataset`, `Dataset` (`dataset`), `Schema` (`schema`),
`TransactionStore` (`store`), `Split` (`split`), `simulate` (`simulator`). Import them from their modules: this one loads nothing, so that
NumPy-only parts stay free of polars.
"""
