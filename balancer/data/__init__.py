"""Turn a table of transactions into arrays; simulate such a table.

Public names: `resolve_spec` (`roles`), `Spec`, `SplitSpec` (`spec`), `load_dataset`, `Dataset` (`dataset`),
`Schema` (`schema`), `TransactionStore` (`store`), `Split` (`split`), `simulate` (`simulation.stream`). Import
each name from its module. This module imports nothing, so that modules which need only NumPy do not load
polars.
"""
