//! Everything that is tested through components, as a user would load them, or through the program. One binary, so that
//! the host is linked once. `cargo xtask test` builds what it needs.

// Where things are, and how a test gets a folder, a store and a run of the program.
mod support;

// Databases of PostgreSQL, one a test.
mod databases;

// Tables of DynamoDB, under a prefix of each test's own.
mod tables;

// Clusters of a test's own, and a network that is cut.
mod cluster;

// One body, every strategy: what the contract promises of a repository.
mod conformance;

// The same where anything goes wrong: every call of a plugin to the host, in every way.
mod faults;

// What takes the program, several processes, or knowledge of one strategy to look at.
mod repository;

// Queries in pages.
mod cursors;

// Where many clients meet at one store.
mod place;

// Many clients at a few entities: their answers are those of some order of their calls.
mod history;

// Transactions that meet: what each isolation excludes.
mod isolation;

// Documents that people edit while they are in use.
mod edits;

// Processes that work on a store, for the two that follow.
mod workers;

// Processes that are killed while they write.
mod crash;

// Many processes at one store, each with its turn.
mod contention;

// Moving data, with real and realistic input.
mod migration;
mod migration_faults;

// Migrations that do not run through.
mod resuming;

// Every kind of store to every other one.
mod pairs;

// The program: its output, its errors and its exit codes.
mod cli;

// What a component can borrow, function by function.
mod capabilities;

// Plugins that change while a host runs.
mod reloading;

// Plugins that try what they may not do, and files that are no plugins.
mod sandbox;

// What a stranger's component is lent, what is told of it, and which are loaded.
mod grants;
// Plugins that misbehave while they run: limits, lies, neighbours, long runs.
mod zoo;

// What only a database on a server has: users, statements that reach further, outages, many clients.
mod postgres;

// What only tables of DynamoDB have: a service that throttles, loses, and comes back.
mod dynamodb;

// A proxy that does to requests what a network and a busy service do.
mod fault_proxy;

// Writes that share a flush.
mod group_commit;

// Random operations, the same on every strategy and on a reference in memory.
mod model;

// Random questions, answered by every strategy as by a list in memory.
mod queries;
