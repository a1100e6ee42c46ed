//! For strategies written in Rust: implement [`Strategy`] in plain Rust over [`Files`], [`Sql`] or
//! [`Dynamodb`], and
//! `export_strategy!` makes a component of it.
//!
//! Strategies see no generated binding, so their logic compiles, is tested and is timed natively too, over any other
//! implementation of the capability. On WebAssembly, `HostFiles`, `HostSql` and `HostDynamodb` are the host's.

#[cfg(target_family = "wasm")]
pub mod bindings;
mod capability;
mod strategy;

pub use capability::{
    Attribute, Capacity, Connections, Dialect, Dynamodb, Expression, FileStat, Files, IndexStatus, Item, ItemAction,
    ItemPage, ItemQuery, ItemScan, KeySchema, LockMode, Packed, Rows, Sql, SqlTransaction, SqlValue, TableSpec,
    TableStatus, Written,
};
pub use larder_model as model;
pub use strategy::Strategy;

#[cfg(target_family = "wasm")]
pub use bindings::{HostDynamodb, HostFiles, HostSql};
