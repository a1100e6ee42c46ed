//! The `dynamodb` strategy: entities as items of tables.
