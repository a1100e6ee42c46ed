//! Nothing: the tests are in `it/`, one binary that links the host once.
