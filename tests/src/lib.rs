//! Harness for behaviours seen through sockets: it knows the binaries and their API, never proxy internals.
