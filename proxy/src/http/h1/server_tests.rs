//! The downstream connection against scripted clients.
