//! Decompresses a body piece by piece, within bounds.

use super::Encoding;
use brotli::{BrotliDecompressStream, BrotliResult, BrotliState, enc::StandardAlloc};
use bytes::Bytes;
use flate2::{Decompress, FlushDecompress, Status};
use std::io::{self, Write};
use weft_config::{Context, data_source::DataSource};
use weft_control_api::{
    Any,
    envoy::extensions::compression::{
        brotli::decompressor::v3 as brotli_pb, gzip::decompressor::v3 as gzip_pb, zstd::decompressor::v3 as zstd_pb,
    },
};

/// How many times its input a body may become.
const RATIO: u64 = 100;

/// How to decompress: a decompressor library's configuration.
#[derive(Clone)]
pub enum Library {
    Gzip { window_bits: u8, ratio: u64 },
    Brotli,
    Zstd { dictionary: Bytes },
}

impl Library {
    /// Reads a decompressor library at the current place; `None` if a problem was reported.
    pub fn from_any(any: &Any, cx: &mut Context) -> Option<Self> {
        match any.type_url.rsplit('/').next().unwrap_or_default() {
            "envoy.extensions.compression.gzip.decompressor.v3.Gzip" => {
                let gzip_pb::Gzip { window_bits, chunk_size, max_inflate_ratio } = cx.unpack("", any)?;
                cx.ignored_if("chunk_size", chunk_size.is_some());
                let window_bits = window_bits.and_then(|bits| u8::try_from(bits).ok()).unwrap_or(15).clamp(9, 15);
                Some(Self::Gzip { window_bits, ratio: max_inflate_ratio.map_or(RATIO, u64::from) })
            }
            "envoy.extensions.compression.brotli.decompressor.v3.Brotli" => {
                let brotli_pb::Brotli { disable_ring_buffer_reallocation, chunk_size } = cx.unpack("", any)?;
                cx.ignored_if("disable_ring_buffer_reallocation", disable_ring_buffer_reallocation);
                cx.ignored_if("chunk_size", chunk_size.is_some());
                Some(Self::Brotli)
            }
            "envoy.extensions.compression.zstd.decompressor.v3.Zstd" => {
                let zstd_pb::Zstd { dictionaries, chunk_size } = cx.unpack("", any)?;
                cx.ignored_if("chunk_size", chunk_size.is_some());
                if dictionaries.len() > 1 {
                    cx.problem_at("dictionaries", "several are not supported, allowed: one");
                }
                let mut dictionaries = cx.elements("dictionaries", dictionaries, |cx, p| DataSource::from_proto(p, cx));
                Some(Self::Zstd { dictionary: dictionaries.pop().map(|source| source.data).unwrap_or_default() })
            }
            found => {
                cx.problem(format!("found {found:?}, which is no decompressor library; allowed: gzip, brotli, zstd"));
                None
            }
        }
    }

    pub fn encoding(&self) -> Encoding {
        match self {
            Self::Gzip { .. } => Encoding::Gzip,
            Self::Brotli => Encoding::Brotli,
            Self::Zstd { .. } => Encoding::Zstd,
        }
    }

    /// Begins a body; `None` if the library refuses its parameters.
    pub fn decoder(&self) -> Option<Decoder> {
        let (kind, ratio) = match self {
            Self::Gzip { window_bits, ratio } => (Kind::Gzip(Decompress::new_gzip(*window_bits)), *ratio),
            Self::Brotli => {
                let alloc = StandardAlloc::default;
                (Kind::Brotli(Box::new(BrotliState::new(alloc(), alloc(), alloc()))), RATIO)
            }
            Self::Zstd { dictionary } => {
                let decoder = zstd::stream::write::Decoder::with_dictionary(Bounded::default(), dictionary);
                (Kind::Zstd(Box::new(decoder.ok()?)), RATIO)
            }
        };
        Some(Decoder { kind, ratio, read: 0, written: 0 })
    }
}

/// A body being decompressed.
pub struct Decoder {
    kind: Kind,
    ratio: u64,
    read: u64,
    written: u64,
}

enum Kind {
    Gzip(Decompress),
    Brotli(Box<BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>>),
    Zstd(Box<zstd::stream::write::Decoder<'static, Bounded>>),
}

/// Takes no more than it may.
#[derive(Default)]
struct Bounded {
    out: Vec<u8>,
    most: usize,
}

impl Write for Bounded {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.out.len() + data.len() > self.most {
            return Err(io::Error::other("the body becomes too large"));
        }
        self.out.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Bounded {
    fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }
}

impl Decoder {
    /// Decompresses what `data` lets know.
    ///
    /// # Errors
    /// The data are not in this encoding, or become more than the ratio allows.
    pub fn push(&mut self, data: &[u8]) -> io::Result<Bytes> {
        self.read += data.len() as u64;
        let most = (self.read.saturating_mul(self.ratio)).saturating_sub(self.written);
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let out = match &mut self.kind {
            Kind::Gzip(decompress) => inflate(decompress, data, most)?,
            Kind::Brotli(state) => unbrotli(state, data, most)?,
            Kind::Zstd(decoder) => {
                decoder.get_mut().most = most;
                decoder.write_all(data)?;
                decoder.flush()?;
                decoder.get_mut().take()
            }
        };
        self.written += out.len() as u64;
        Ok(out.into())
    }
}

fn unbrotli(
    state: &mut BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>,
    data: &[u8],
    most: usize,
) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut piece = [0; 8192];
    let (mut left, mut at, mut total) = (data.len(), 0, 0);
    loop {
        let (mut room, mut filled) = (piece.len(), 0);
        let result =
            BrotliDecompressStream(&mut left, &mut at, data, &mut room, &mut filled, &mut piece, &mut total, state);
        out.extend_from_slice(&piece[..filled]);
        if out.len() > most {
            return Err(io::Error::other("the body becomes too large"));
        }
        match result {
            BrotliResult::NeedsMoreOutput => {}
            // It asks for input even where it had no room for all that it has.
            BrotliResult::NeedsMoreInput if room == 0 => {}
            BrotliResult::NeedsMoreInput | BrotliResult::ResultSuccess => return Ok(out),
            BrotliResult::ResultFailure => return Err(io::Error::other("the body is no brotli")),
        }
    }
}

fn inflate(decompress: &mut Decompress, mut data: &[u8], most: usize) -> io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity((data.len() * 4).min(most).max(64));
    loop {
        let (read, written) = (decompress.total_in(), out.len());
        let status = decompress.decompress_vec(data, &mut out, FlushDecompress::Sync).map_err(io::Error::other)?;
        let read = (decompress.total_in() - read) as usize;
        data = &data[read..];
        if out.len() > most {
            return Err(io::Error::other("the body becomes too large"));
        }
        let stands_still = read == 0 && out.len() == written;
        if status == Status::StreamEnd || (out.len() < out.capacity() && (data.is_empty() || stands_still)) {
            return Ok(out);
        }
        out.reserve(out.capacity().max(256));
    }
}

#[cfg(test)]
mod tests {
    use super::super::encoder;
    use super::*;

    fn libraries() -> [(encoder::Library, Library); 3] {
        [
            (encoder::Library::Gzip { level: 6, window_bits: 12 }, Library::Gzip { window_bits: 15, ratio: RATIO }),
            (encoder::Library::Brotli { params: Box::default(), chunk: 4096 }, Library::Brotli),
            (
                encoder::Library::Zstd { level: 3, checksum: true, dictionary: Bytes::new() },
                Library::Zstd { dictionary: Bytes::new() },
            ),
        ]
    }

    #[test]
    fn pieces_come_out_as_they_go_in() {
        for (compressor, decompressor) in libraries() {
            let mut encoder = compressor.encoder().expect("parameters are good");
            let mut decoder = decompressor.decoder().expect("parameters are good");
            for n in 0..20usize {
                let mut random = fastrand::Rng::with_seed(n as u64);
                let piece: Vec<u8> = (0..n * 997).map(|_| random.u8(0..60)).collect();
                let packed = encoder.push(&piece, n == 19).expect("it compresses");
                let unpacked = decoder.push(&packed).expect("it is what was compressed");
                assert!(unpacked == piece, "{:?} {n}: {} of {}", compressor.encoding(), unpacked.len(), piece.len());
            }
        }
    }

    #[test]
    fn what_becomes_too_large_is_refused_and_so_is_noise() {
        for (compressor, decompressor) in libraries() {
            let zeros = vec![0; 10 << 20];
            let packed = compressor.encoder().expect("good").push(&zeros, true).expect("it compresses");
            assert!(decompressor.decoder().expect("good").push(&packed).is_err(), "{:?}", compressor.encoding());
            assert!(decompressor.decoder().expect("good").push(&[0xff; 400]).is_err(), "{:?}", compressor.encoding());
        }
    }
}
