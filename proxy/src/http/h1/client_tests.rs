//! The upstream connection against scripted servers.
