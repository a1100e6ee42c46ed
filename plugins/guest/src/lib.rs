//! For strategies written in Rust: implement [`Strategy`] in plain Rust over [`Files`] or [`Sql`], and
//! `export_strategy!` makes a component of it.
//!
//! Strategies see no generated binding, so their logic compiles, is tested and is timed natively too, over any other
//! implementation of the capability. On WebAssembly, `HostFiles` and `HostSql` are the host's.

#[cfg(target_family = "wasm")]
pub mod bindings;
mod capability;
mod strategy;

pub use capability::{Connections, Dialect, FileStat, Files, LockMode, Rows, Sql, SqlTransaction, SqlValue};
pub use larder_model as model;
pub use strategy::Strategy;

#[cfg(target_family = "wasm")]
pub use bindings::{HostFiles, HostSql};
