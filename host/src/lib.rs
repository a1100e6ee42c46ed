//! Larder: a repository of JSON entities whose storage strategies are sandboxed WebAssembly components.
//!
//! The data path, which is also the order to read the modules in:
//!
//! 1. [`config`] turns what a person wrote into one valid value. Nothing validates it again.
//! 2. [`plugin`] compiles a component, reads what it imports, and asks it to describe itself; [`host`] opens stores.
//! 3. `capability` links what the store was granted, and nothing else: a directory, a database.
//! 4. [`repository`] is the handle on an open store. It owns the instances, gives each call a deadline, and checks what
//!    comes back; [`query`] filters and sorts what the strategy left.
//! 5. [`migration`] moves entities from one repository to another, and proves it. It knows no strategy.
//! 6. [`conformance`] holds any component against the contract.
//! 7. [`cli`] and [`command`] are the program: one file a command, an outcome each, rendered by [`output`].
//!
//! ```no_run
//! # async fn example() -> Result<(), larder::error::Error> {
//! use larder::{config::Config, host::Host};
//!
//! let host = Host::new(Config::load(None)?, None)?;
//! let requests = host.open(None).await?;
//! let found = requests.get("requests", &["req-123".to_string()]).await?;
//! if let Some(request) = &found[0] {
//!     println!("version {}: {}", request.version, String::from_utf8_lossy(&request.body));
//! }
//! # Ok(()) }
//! ```

pub mod config;
pub mod error;
pub mod host;
pub mod plugin;

mod capability;
mod clock;

pub mod repository;

pub mod query;

pub mod migration;

pub mod conformance;

pub mod cli;
pub mod command;
pub mod exit;
pub mod output;

pub use larder_model as model;
