//! Signatures on certificates and CRLs that were found to be good.
//!
//! A mesh's peers present the same few certificates with each of their connections, and whether a signature is good depends
//! on nothing but itself, the key and what is signed. So a thread remembers those that were; that is a third of what
//! cryptography costs in a handshake of mTLS. Everything else about a path (times, names, usages, CRLs, anchors) is
//! looked at each time, and a peer's signature of its handshake is never one that was seen before.
//!
//! Invariant: what is remembered is bounded, was good, and stands for exactly one signature.

use super::parsed::{PublicKeyInfo, Signed};
use aws_lc_rs::digest::{Context, SHA256};
use rustls::pki_types::{InvalidSignature, SignatureVerificationAlgorithm};
use std::{cell::RefCell, collections::HashSet, mem};

/// How many are remembered since the last time that half of them were forgotten: 32 bytes each.
const RECENT: usize = 512;

thread_local! {
    static GOOD: RefCell<Good> = RefCell::default();
}

/// Checks `signed` with the key of its issuer, unless it is known to be good.
pub fn check(
    algorithm: &dyn SignatureVerificationAlgorithm,
    signed: &Signed,
    by: &PublicKeyInfo,
) -> Result<(), InvalidSignature> {
    let id = id(signed, by);
    if GOOD.with_borrow_mut(|good| good.knows(id)) {
        return Ok(());
    }
    algorithm.verify_signature(&by.key, &signed.message, &signed.signature)?;
    GOOD.with_borrow_mut(|good| good.add(id));
    Ok(())
}

type Id = [u8; 32];

/// Stands for the key, what is signed, and the signature, each with its algorithm.
fn id(signed: &Signed, by: &PublicKeyInfo) -> Id {
    let mut context = Context::new(&SHA256);
    for part in [&by.der, &signed.algorithm, &signed.message, &signed.signature] {
        // With its length, so that no two lists of parts are the same bytes.
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let mut id = Id::default();
    id.copy_from_slice(context.finish().as_ref());
    id
}

/// What was used lately, and before that.
#[derive(Default)]
struct Good {
    recent: HashSet<Id>,
    before: HashSet<Id>,
}

impl Good {
    fn knows(&mut self, id: Id) -> bool {
        if self.recent.contains(&id) {
            return true;
        }
        let known = self.before.remove(&id);
        if known {
            self.add(id);
        }
        known
    }

    fn add(&mut self, id: Id) {
        if self.recent.len() >= RECENT {
            self.before = mem::take(&mut self.recent);
        }
        self.recent.insert(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::AlgorithmIdentifier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Finds good what is signed with its own text, and counts how often it is asked.
    #[derive(Debug, Default)]
    struct Counting(AtomicUsize);

    impl SignatureVerificationAlgorithm for Counting {
        fn verify_signature(&self, _: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
            self.0.fetch_add(1, Ordering::Relaxed);
            if message == signature { Ok(()) } else { Err(InvalidSignature) }
        }

        fn public_key_alg_id(&self) -> AlgorithmIdentifier {
            AlgorithmIdentifier::from_slice(b"key")
        }

        fn signature_alg_id(&self) -> AlgorithmIdentifier {
            AlgorithmIdentifier::from_slice(b"signature")
        }
    }

    fn signed(message: &str, signature: &str) -> Signed {
        Signed { message: message.as_bytes().into(), algorithm: (*b"a").into(), signature: signature.as_bytes().into() }
    }

    fn key(der: &str) -> PublicKeyInfo {
        PublicKeyInfo {
            der: der.as_bytes().into(),
            algorithm: (*b"a").into(),
            key: der.as_bytes().into(),
            rsa_bits: None,
        }
    }

    #[test]
    fn only_what_was_good_is_known() {
        let algorithm = Counting::default();
        let asked = |text: &str, signature: &str, by: &str| {
            let before = algorithm.0.load(Ordering::Relaxed);
            let good = check(&algorithm, &signed(text, signature), &key(by)).is_ok();
            (good, algorithm.0.load(Ordering::Relaxed) - before)
        };
        assert_eq!(asked("one", "one", "k"), (true, 1));
        assert_eq!(asked("one", "one", "k"), (true, 0));
        assert_eq!(asked("one", "one", "other"), (true, 1), "another key's is another signature");
        assert_eq!(asked("one", "two", "k"), (false, 1));
        assert_eq!(asked("one", "two", "k"), (false, 1), "a bad one is looked at each time");
        assert_eq!(asked("on", "eone", "k"), (false, 1), "parts do not flow into each other");
    }

    #[test]
    fn what_is_used_stays_and_the_rest_is_forgotten() {
        let mut good = Good::default();
        let id = |n: usize| {
            let mut id = Id::default();
            id[..8].copy_from_slice(&n.to_be_bytes());
            id
        };
        good.add(id(0));
        for n in 1..10 * RECENT {
            good.add(id(n));
            assert!(good.knows(id(0)));
            assert!(good.recent.len() + good.before.len() <= 2 * RECENT);
        }
        assert!(!good.knows(id(1)));
    }
}
