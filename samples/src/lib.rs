//! Made-up data for the demo, the tests and the benchmarks. Everything is a function of its seed, so that a failure
//! can be repeated and two measurements read the same bytes.
//!
//! - [`machines`]: as many small entities as asked for, all of which fit the strict tables.
//! - [`hostfactory`]: 2,550 entities as a real installation writes them, with all that the tables have no column for.
//! - [`awkward`]: entities that are valid and easy to damage.
//!
//! `samples/data` holds three documents that are small enough to read.

mod awkward;
mod hostfactory;
mod machines;
mod random;

pub use awkward::{Awkward, NESTING_MAX, awkward};
pub use hostfactory::hostfactory;
pub use machines::machines;

/// The seed where nobody asks for another.
pub const SEED: u64 = 2026;

/// Renders text as a JSON string.
fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
