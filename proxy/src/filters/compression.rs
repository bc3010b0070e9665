//! Streaming compression in the three encodings, for `compressor` and `decompressor`.
//!
//! What goes in comes out in the same call: a peer waits for no more than was sent. Output is bounded by its ratio to the
//! input, so that no small body becomes a large one here.

pub mod decoder;
pub mod encoder;

/// A `content-encoding`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Gzip,
    Brotli,
    Zstd,
}

impl Encoding {
    /// As headers name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
        }
    }

    /// As stats name it.
    pub fn stat_name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Brotli => "brotli",
            Self::Zstd => "zstd",
        }
    }
}
