//! The peers that this thread met lately: what their certificates say, read once for all their connections.
//!
//! Made where a handshake ends ([`peer`]), asked where one goes on. Nothing here is about trust: whoever is in here is verified like
//! everybody else.
//!
//! Invariant: bounded in number and size, whoever connects.

use crate::base::Certificate;
use rustls::pki_types::CertificateDer;
use std::{cell::RefCell, collections::HashMap, rc::Rc};

/// So many peers; then it begins anew.
const MOST: usize = 128;
/// In bytes; who presents more is read each time.
const LONGEST_CHAIN: usize = 8 << 10;

/// What a peer presented.
#[derive(Clone)]
pub struct Peer {
    pub certificate: Rc<Certificate>,
    /// DER, its own certificate first.
    pub chain: Rc<[Box<[u8]>]>,
}

thread_local! {
    /// By the peer's own certificate.
    static PEERS: RefCell<HashMap<Box<[u8]>, Peer>> = RefCell::default();
}

/// What a peer presented, taken apart; `None` if that is nothing.
///
/// # Errors
/// Its certificate cannot be read.
pub fn peer(chain: &[CertificateDer<'_>]) -> Result<Option<Peer>, String> {
    let Some(own) = chain.first() else { return Ok(None) };
    let is_same = |peer: &&Peer| peer.chain.iter().map(|der| &**der).eq(chain.iter().map(|der| &**der));
    let known = PEERS.with_borrow(|peers| peers.get(&**own).filter(is_same).cloned());
    if known.is_some() {
        return Ok(known);
    }
    let peer = Peer {
        certificate: Rc::new(Certificate::parse(own)?),
        chain: chain.iter().map(|der| der.as_ref().into()).collect(),
    };
    if chain.iter().map(|der| der.len()).sum::<usize>() <= LONGEST_CHAIN {
        PEERS.with_borrow_mut(|peers| {
            if peers.len() >= MOST {
                peers.clear();
            }
            peers.insert(own.as_ref().into(), peer.clone());
        });
    }
    Ok(Some(peer))
}

/// True if the certificate is known here, and may sign.
pub fn may_sign(certificate: &[u8]) -> bool {
    PEERS.with_borrow(|peers| peers.get(certificate).is_some_and(|peer| peer.certificate.may_sign))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};

    fn certificate(key: &KeyPair) -> CertificateDer<'static> {
        CertificateParams::new(["a.example".to_owned()]).unwrap().self_signed(key).unwrap().der().clone()
    }

    #[test]
    fn a_peer_is_read_once_and_known_by_its_whole_chain() {
        let key = KeyPair::generate().unwrap();
        let (one, other) = (certificate(&key), certificate(&KeyPair::generate().unwrap()));
        assert!(!may_sign(&one));
        let first = peer(std::slice::from_ref(&one)).unwrap().unwrap();
        assert!(may_sign(&one));
        assert!(Rc::ptr_eq(&first.certificate, &peer(std::slice::from_ref(&one)).unwrap().unwrap().certificate));
        let longer = peer(&[one, other]).unwrap().unwrap();
        assert_eq!((first.chain.len(), longer.chain.len()), (1, 2));
        assert!(peer(&[]).unwrap().is_none());
        assert!(peer(&[CertificateDer::from_slice(b"no certificate")]).is_err());
    }

    #[test]
    fn there_is_room_for_so_many() {
        let key = KeyPair::generate().unwrap();
        for _ in 0..=MOST {
            let _ = peer(&[certificate(&key)]).unwrap();
        }
        assert!(PEERS.with_borrow(HashMap::len) <= MOST);
        let long = vec![certificate(&key); LONGEST_CHAIN / 100];
        let _ = peer(&long).unwrap();
        assert!(!may_sign(&long[0]));
    }
}
