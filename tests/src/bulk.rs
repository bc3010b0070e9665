//! Much that passes a proxy: servers of which each connection is one call, and bytes that tell where they belong.

use std::{
    io::Read,
    net::{TcpListener, TcpStream},
    thread,
};

/// A server of which each connection is one call on a thread of its own; its port.
///
/// # Panics
/// There is no port.
pub fn server(serve: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its address").port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        }
    });
    port
}

/// Bytes that tell where they belong, again and again; of no length that buffers have.
pub fn pattern(seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(MIB);
    while bytes.len() < 1_000_000 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(999_983);
    bytes
}

pub const MIB: usize = 1 << 20;

/// How many bytes of a pattern came before the end; `None` if others did.
pub fn read_pattern(mut stream: &TcpStream, pattern: &[u8]) -> Option<usize> {
    let (mut all, mut buffer) = (0, vec![0; 256 << 10]);
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        let mut got = &buffer[..n];
        while !got.is_empty() {
            let wanted = &pattern[all % pattern.len()..];
            let (now, later) = got.split_at(wanted.len().min(got.len()));
            if now != &wanted[..now.len()] {
                return None;
            }
            all += now.len();
            got = later;
        }
    }
    Some(all)
}
