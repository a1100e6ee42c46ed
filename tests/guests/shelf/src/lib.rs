//! A strategy from outside the project: one file an entity.
