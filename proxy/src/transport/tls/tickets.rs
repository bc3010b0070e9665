//! Session tickets: sealed with keys of one revision, so that nothing outlives it, or with keys that processes share.
//!
//! Invariant: a ticket opens only under the trust decision that it was made under (RFC 8446, 4.6.1; the shared keys bind it
//! by their associated data), and only within its lifetime.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    digest::{SHA256, digest},
};
use rustls::{crypto::aws_lc_rs::Ticketer, server::ProducesTickets};
use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// How long sessions may be resumed if nothing else is said; the TLS library's default in Envoy.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(7200);

/// Tickets under keys of this process that change by themselves.
///
/// # Errors
/// Randomness failed.
pub fn own(lifetime: Duration) -> Result<Arc<dyn ProducesTickets>, rustls::Error> {
    Ok(Arc::new(Aged { inner: Ticketer::new()?, lifetime }))
}

/// Tickets under shared keys of 80 bytes: name, and what AES-256 needs. `binding` stands for the trust decision.
pub fn shared(keys: &[impl AsRef<[u8]>], binding: [u8; 32], lifetime: Duration) -> Option<Arc<dyn ProducesTickets>> {
    let keys: Option<Vec<_>> = keys.iter().map(|key| Key::new(key.as_ref())).collect();
    let keys = keys.filter(|keys| !keys.is_empty())?;
    Some(Arc::new(Aged { inner: Arc::new(Shared { keys, binding }), lifetime }))
}

/// Tickets that know when they were made.
#[derive(Debug)]
struct Aged {
    inner: Arc<dyn ProducesTickets>,
    lifetime: Duration,
}

impl ProducesTickets for Aged {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(self.lifetime.as_secs()).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.inner.encrypt(&[&now().to_be_bytes(), plain].concat())
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let mut plain = self.inner.decrypt(cipher)?;
        let made = u64::from_be_bytes(*plain.first_chunk()?);
        let age = now().checked_sub(made)?;
        plain.drain(..8);
        (age <= self.lifetime.as_secs()).then_some(plain)
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Keys that several processes have: the first seals, all open.
struct Shared {
    keys: Vec<Key>,
    binding: [u8; 32],
}

struct Key {
    name: [u8; 16],
    key: RandomizedNonceKey,
}

impl Key {
    fn new(bytes: &[u8]) -> Option<Self> {
        let (name, secret) = bytes.split_first_chunk::<16>()?;
        // All of the secret counts, whatever another implementation would use each part for.
        let key = RandomizedNonceKey::new(&AES_256_GCM, digest(&SHA256, secret).as_ref()).ok()?;
        Some(Self { name: *name, key })
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

impl ProducesTickets for Shared {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        0
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let key = self.keys.first()?;
        let mut sealed = plain.to_vec();
        let nonce = key.key.seal_in_place_append_tag(Aad::from(self.binding), &mut sealed).ok()?;
        Some([&key.name, &nonce.as_ref()[..], &sealed].concat())
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = cipher.split_first_chunk::<16>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let mut opened = sealed.to_vec();
        let key = self.keys.iter().find(|key| key.name == *name)?;
        let len = key.key.open_in_place(Nonce::from(nonce), Aad::from(self.binding), &mut opened).ok()?.len();
        opened.truncate(len);
        Some(opened)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> [u8; 80] {
        [byte; 80]
    }

    #[test]
    fn shared_keys_open_what_the_first_of_another_process_sealed() {
        let hour = Duration::from_secs(3600);
        let old = shared(&[key(1)], [7; 32], hour).unwrap();
        let rotated = shared(&[key(2), key(1)], [7; 32], hour).unwrap();
        let other_trust = shared(&[key(1)], [8; 32], hour).unwrap();
        let other_key = shared(&[key(2)], [7; 32], hour).unwrap();
        let ticket = old.encrypt(b"session").unwrap();
        assert_eq!(rotated.decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        assert_eq!(other_trust.decrypt(&ticket), None, "another trust decision");
        assert_eq!(other_key.decrypt(&ticket), None, "another key");
        for cut in 0..ticket.len() {
            assert_eq!(old.decrypt(&ticket[..cut]), None);
        }
    }

    #[test]
    fn old_tickets_open_no_more() {
        let tickets = shared(&[key(1)], [7; 32], Duration::from_secs(60)).unwrap();
        let inner = Shared { keys: vec![Key::new(&key(1)).unwrap()], binding: [7; 32] };
        let made = |at: u64| inner.encrypt(&[&at.to_be_bytes(), &b"session"[..]].concat()).unwrap();
        assert!(tickets.decrypt(&made(now() - 59)).is_some());
        assert!(tickets.decrypt(&made(now() - 62)).is_none());
        assert!(tickets.decrypt(&made(now() + 60)).is_none(), "from the future");
    }
}
