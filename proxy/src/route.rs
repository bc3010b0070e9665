//! The compiled route table and its actions.
