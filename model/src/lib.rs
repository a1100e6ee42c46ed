//! What the host and every strategy share, so that they cannot disagree about it.
//!
//! The contract itself is `wit/`; [`contract`] mirrors its types for plain Rust, so that a strategy's logic compiles and
//! is tested natively. The rest is the meaning of those types: [`json`] reads entities without losing a digit,
//! [`number`] compares them exactly, [`filter`] and [`order`] say what a query answers, [`entity`] what a write makes of
//! a body, [`rules`] what a schema refuses.
//!
//! Nothing here does I/O, reads a clock or knows a storage technology.

pub mod contract;
pub mod entity;
pub mod filter;
pub mod json;
pub mod number;
pub mod order;
pub mod path;
pub mod rules;

pub use contract::*;
