//! The words every module shares: response flags, errors, connection and stream facts, timers, the drain signal.
//!
//! Invariant: nothing here knows HTTP codecs, clusters or listeners.

pub mod address;
pub mod certificate;
pub mod clock;
pub mod connection_info;
pub mod drain;
pub mod error;
pub mod response_flag;
pub mod runtime;
pub mod timer;
pub mod tls;
pub mod token_bucket;

pub use address::Address;
pub use certificate::Certificate;
pub use connection_info::{ConnectionInfo, next_connection_id};
pub use drain::Drain;
pub use error::{ResetReason, Side, StreamError};
pub use response_flag::{ResponseFlag, ResponseFlags};
pub use runtime::RuntimeSnapshot;
pub use timer::Timer;
pub use tls::TlsConnection;
