//! Larder: a repository of JSON entities whose storage strategies are sandboxed WebAssembly components.
//!
//! The data path, which is also the order to read the modules in:
//!
//! 1. [`config`] turns what a person wrote into one valid value. Nothing validates it again.
//! 2. [`plugin`] compiles a component, reads what it imports, and asks it to describe itself; [`host`] opens stores.
//! 3. `capability` links what the store was granted, and nothing else: a directory, a database, hosts of a network.
//! 4. [`repository`] is the handle on an open store. It owns the instances, gives each call a deadline, and checks what
//!    comes back; [`query`] filters and sorts what the strategy left.
//! 5. [`migration`] moves entities from one repository to another, and proves it. It knows no strategy.
//! 6. [`conformance`] holds any component against the contract.
//! 7. [`cli`] and [`command`] are the program: one file a command, an outcome each, rendered by [`output`].
//!
//! # In an application
//!
//! A [`Host`] is made from a [`Config`] and opens stores; a [`Repository`] is an open one, cheap to clone, and the same
//! whatever the strategy behind it. This one is in JSON files; with `"strategy": "sql"` it would be tables.
//!
//! ```
//! use larder::{Config, Expectation, Host, Repository};
//! use serde_json::{Map, Value, json};
//!
//! type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
//!
//! /// Works with any storage strategy.
//! async fn create_request(repository: &Repository, request: &Map<String, Value>) -> Result<String> {
//!     let text = |name: &str| request[name].as_str().ok_or(format!("{name} is not a text"));
//!     let (request_id, template_id) = (text("request_id")?, text("template_id")?);
//!     let machine_count = request["machine_count"].as_u64().ok_or("machine_count is not a number")?;
//!
//!     // Validate that the template exists.
//!     if repository.get_one("templates", template_id).await?.is_none() {
//!         return Err(format!("there is no template {template_id}").into());
//!     }
//!
//!     // Save the request.
//!     repository.save("requests", &larder::encode(request)?, Expectation::Any).await?;
//!
//!     // Create the machines.
//!     for i in 0..machine_count {
//!         let machine = json!({
//!             "machine_id": format!("machine-{request_id}-{i}"),
//!             "request_id": request_id,
//!             "template_id": template_id,
//!             "status": "PENDING",
//!         });
//!         repository.save("machines", &larder::encode(&machine)?, Expectation::Any).await?;
//!     }
//!     Ok(request_id.to_owned())
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<()> {
//! # let folder = tempfile::tempdir()?;
//! # let folder = folder.path();
//! # for strategy in ["json", "sql"] {
//! # let json = json!({"base_path": folder.join("data")});
//! # let sql = json!({"name": folder.join("tables/requests.db")});
//! # let storage = json!({"strategy": strategy, "json_strategy": json, "sql_strategy": sql});
//! # let plugins = json!({"directory": std::env::var("LARDER_TEST_PLUGINS")?});
//! let config = json!({"storage": {"strategy": "json", "json_strategy": {"base_path": "data"}}});
//! # assert!(Config::from_value(config, folder).is_ok(), "what is shown is valid");
//! # let config = json!({"storage": storage, "plugins": plugins});
//! let host = Host::new(Config::from_value(config, folder)?, None)?;
//! let repository = host.open(None).await?;
//! # let template = json!({"template_id": "small", "name": "Small", "provider_api": "RunInstances",
//! #     "vm_type": "t3.medium", "max_number": 10});
//! # repository.save("templates", &larder::encode(&template)?, Expectation::Any).await?;
//!
//! let request = json!({
//!     "request_id": "req-123", "template_id": "small", "machine_count": 2,
//!     "status": "PENDING", "request_type": "acquire",
//! });
//! let request_id = create_request(&repository, request.as_object().unwrap()).await?;
//!
//! assert_eq!(repository.count("machines", Some(&format!("request_id={request_id}").parse()?)).await?, 2);
//! # let unknown = json!({"request_id": "r", "template_id": "none", "machine_count": 1});
//! # assert!(create_request(&repository, unknown.as_object().unwrap()).await.is_err());
//!
//! // Every store is left as people and other programs expect to find it.
//! for problem in host.close().await {
//!     eprintln!("{problem}");
//! }
//! # }
//! # Ok(()) }
//! ```
//!
//! From there: [`Repository`] for optimistic locking, conditional updates and typed entities, [`Transaction`],
//! [`Select`] and [`Repository::query`] for questions, [`Repository::query_page`] for pages, [`Repository::load`] for bulk.
//! An [`Error`] says what kind it is ([`Error::is`]), whether to try again, and what to do about it.
//!
//! Everything is asynchronous and needs a Tokio runtime with time enabled. Numbers are exact as long as they are in a
//! body, in `serde_json` values or in texts; for that, this crate turns on `serde_json`'s features `arbitrary_precision`
//! and `preserve_order`, which then hold for the whole application.

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

#[doc(hidden)]
pub mod bare;

pub mod cli;
pub mod command;
pub mod exit;
pub mod output;
mod scheduling;
mod text;

pub use larder_model as model;

pub use config::Config;
pub use error::{Error, Result};
pub use host::Host;
pub use host::reload::{Reload, Watch};
pub use model::json::encode;
pub use model::{Entity, ErrorKind, Existing, Expectation, Isolation, Put, Removal, SortKey, Write};
pub use query::{Answer, QueryPage, Select};
pub use repository::{Repository, Transaction};
