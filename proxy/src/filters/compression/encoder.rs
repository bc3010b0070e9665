//! Compresses a body piece by piece.

use super::Encoding;
use brotli::{CompressorWriter, enc::BrotliEncoderParams};
use bytes::Bytes;
use flate2::{Compress, Compression, FlushCompress};
use std::io::{self, Write as _};
use weft_config::{Context, data_source::DataSource};
use weft_control_api::{
    Any,
    envoy::extensions::compression::{
        brotli::compressor::v3 as brotli_pb,
        gzip::compressor::v3::{self as gzip_pb, gzip::CompressionLevel},
        zstd::compressor::v3 as zstd_pb,
    },
};

/// How to compress: a compressor library's configuration.
#[derive(Clone, Debug)]
pub enum Library {
    Gzip { level: u32, window_bits: u8 },
    Brotli { params: Box<BrotliEncoderParams>, chunk: usize },
    Zstd { level: i32, checksum: bool, dictionary: Bytes },
}

impl Library {
    /// Reads a compressor library at the current place; `None` if a problem was reported.
    pub fn from_any(any: &Any, cx: &mut Context) -> Option<Self> {
        match any.type_url.rsplit('/').next().unwrap_or_default() {
            "envoy.extensions.compression.gzip.compressor.v3.Gzip" => {
                let p = cx.unpack("", any)?;
                Some(Self::gzip(p, cx))
            }
            "envoy.extensions.compression.brotli.compressor.v3.Brotli" => {
                let p = cx.unpack("", any)?;
                Some(Self::brotli(p, cx))
            }
            "envoy.extensions.compression.zstd.compressor.v3.Zstd" => {
                let p = cx.unpack("", any)?;
                Self::zstd(p, cx)
            }
            found => {
                cx.problem(format!("found {found:?}, which is no compressor library; allowed: gzip, brotli, zstd"));
                None
            }
        }
    }

    fn gzip(p: gzip_pb::Gzip, cx: &mut Context) -> Self {
        let gzip_pb::Gzip { memory_level, compression_level, compression_strategy, window_bits, chunk_size } = p;
        // They change how the same bytes are said, not which.
        cx.ignored_if("memory_level", memory_level.is_some());
        cx.ignored_if("compression_strategy", compression_strategy != 0);
        cx.ignored_if("chunk_size", chunk_size.is_some());
        let level = match cx.enumeration("compression_level", compression_level) {
            CompressionLevel::DefaultCompression => 6,
            level => level as u32,
        };
        let window_bits = window_bits.and_then(|bits| u8::try_from(bits).ok()).unwrap_or(12);
        Self::Gzip { level, window_bits: window_bits.clamp(9, 15) }
    }

    fn brotli(p: brotli_pb::Brotli, cx: &mut Context) -> Self {
        use brotli::enc::backward_references::BrotliEncoderMode as Mode;
        let brotli_pb::Brotli {
            quality,
            encoder_mode,
            window_bits,
            input_block_bits,
            chunk_size,
            disable_literal_context_modeling,
        } = p;
        let small = |value: Option<u32>, default: i32| value.and_then(|v| i32::try_from(v).ok()).unwrap_or(default);
        let params = BrotliEncoderParams {
            quality: small(quality, 3),
            mode: match cx.enumeration("encoder_mode", encoder_mode) {
                brotli_pb::brotli::EncoderMode::Text => Mode::BROTLI_MODE_TEXT,
                brotli_pb::brotli::EncoderMode::Font => Mode::BROTLI_MODE_FONT,
                _ => Mode::BROTLI_MODE_GENERIC,
            },
            lgwin: small(window_bits, 18),
            lgblock: small(input_block_bits, 24),
            disable_literal_context_modeling: disable_literal_context_modeling.into(),
            ..BrotliEncoderParams::default()
        };
        let chunk = chunk_size.and_then(|size| usize::try_from(size).ok()).unwrap_or(4096);
        Self::Brotli { params: Box::new(params), chunk }
    }

    fn zstd(p: zstd_pb::Zstd, cx: &mut Context) -> Option<Self> {
        let zstd_pb::Zstd { compression_level, enable_checksum, strategy, dictionary, chunk_size } = p;
        cx.ignored_if("strategy", strategy != 0);
        cx.ignored_if("chunk_size", chunk_size.is_some());
        let level = compression_level.and_then(|level| i32::try_from(level).ok()).unwrap_or(3);
        let dictionary = match dictionary {
            Some(p) => cx.field("dictionary", |cx| DataSource::from_proto(p, cx))?.data,
            None => Bytes::new(),
        };
        Some(Self::Zstd { level, checksum: enable_checksum, dictionary })
    }

    pub fn encoding(&self) -> Encoding {
        match self {
            Self::Gzip { .. } => Encoding::Gzip,
            Self::Brotli { .. } => Encoding::Brotli,
            Self::Zstd { .. } => Encoding::Zstd,
        }
    }

    /// Begins a body; `None` if the library refuses its parameters.
    pub fn encoder(&self) -> Option<Encoder> {
        Some(match self {
            Self::Gzip { level, window_bits } => {
                Encoder::Gzip(Compress::new_gzip(Compression::new(*level), *window_bits))
            }
            Self::Brotli { params, chunk } => {
                Encoder::Brotli(Some(Box::new(CompressorWriter::with_params(Vec::new(), *chunk, params))))
            }
            Self::Zstd { level, checksum, dictionary } => {
                let mut encoder = zstd::Encoder::with_dictionary(Vec::new(), *level, dictionary).ok()?;
                encoder.include_checksum(*checksum).ok()?;
                Encoder::Zstd(Some(Box::new(encoder)))
            }
        })
    }
}

/// A body being compressed.
pub enum Encoder {
    Gzip(Compress),
    Brotli(Option<Box<CompressorWriter<Vec<u8>>>>),
    Zstd(Option<Box<zstd::Encoder<'static, Vec<u8>>>>),
}

impl Encoder {
    /// Compresses `data` so that the peer can read all of it. `end`: nothing follows.
    ///
    /// # Errors
    /// The library's; or the body has ended.
    pub fn push(&mut self, data: &[u8], end: bool) -> io::Result<Bytes> {
        let ended = || io::Error::other("the body has ended");
        let out = match self {
            Self::Gzip(compress) => deflate(compress, data, end)?,
            Self::Brotli(writer) => {
                let mut open = writer.take().ok_or_else(ended)?;
                open.write_all(data)?;
                if end {
                    open.into_inner()
                } else {
                    open.flush()?;
                    let out = std::mem::take(open.get_mut());
                    *writer = Some(open);
                    out
                }
            }
            Self::Zstd(encoder) => {
                let mut open = encoder.take().ok_or_else(ended)?;
                open.write_all(data)?;
                if end {
                    open.finish()?
                } else {
                    open.flush()?;
                    let out = std::mem::take(open.get_mut());
                    *encoder = Some(open);
                    out
                }
            }
        };
        Ok(out.into())
    }
}

fn deflate(compress: &mut Compress, mut data: &[u8], end: bool) -> io::Result<Vec<u8>> {
    let flush = if end { FlushCompress::Finish } else { FlushCompress::Sync };
    let mut out = Vec::with_capacity(data.len() / 2 + 64);
    loop {
        let before = compress.total_in();
        let status = compress.compress_vec(data, &mut out, flush).map_err(io::Error::other)?;
        data = &data[(compress.total_in() - before) as usize..];
        let is_done = if end { status == flate2::Status::StreamEnd } else { out.len() < out.capacity() };
        if is_done && data.is_empty() {
            return Ok(out);
        }
        out.reserve(out.capacity().max(256));
    }
}
