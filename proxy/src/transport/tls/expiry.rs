//! Warnings of certificates that are past their end when they are loaded.
//!
//! Called on the control thread whenever material is compiled. A certificate that several contexts are made of, or that is
//! compiled again, is spoken of once for each name that it has.

use crate::base::Certificate;
use std::{
    cell::RefCell,
    collections::HashSet,
    time::{SystemTime, UNIX_EPOCH},
};
use xxhash_rust::xxh64::xxh64;

/// More than these are not kept in mind.
const MOST: usize = 4096;

thread_local! {
    /// What was spoken of.
    static SAID: RefCell<HashSet<u64>> = RefCell::default();
}

/// Warns if a certificate is past its end. `what` it is; `name`: its file or secret.
pub fn warn(certificate: &Certificate, what: &str, name: &str) {
    if certificate.is_expired()
        && let Some(ago) = first_time(certificate, name)
    {
        let subject = &certificate.subject;
        tracing::warn!(target: "config", "{what} {subject:?} from {name} has expired {ago}");
    }
}

/// How long ago it ended; `None` if that was said.
fn first_time(certificate: &Certificate, name: &str) -> Option<String> {
    let key = xxh64(certificate.der(), xxh64(name.as_bytes(), 0));
    let is_new = SAID.with_borrow_mut(|said| {
        if said.len() >= MOST {
            said.clear();
        }
        said.insert(key)
    });
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let days = i64::try_from(now).unwrap_or(i64::MAX).saturating_sub(certificate.not_after) / 86_400;
    is_new.then(|| match days {
        0 => "within the last day".to_owned(),
        1 => "a day ago".to_owned(),
        days => format!("{days} days ago"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_spoken_of_once() {
        let mut params = rcgen::CertificateParams::default();
        params.not_after = (SystemTime::now() - std::time::Duration::from_secs(86_400 * 3 + 60)).into();
        let key = rcgen::KeyPair::generate().unwrap();
        let old = Certificate::parse(params.self_signed(&key).unwrap().der()).unwrap();
        assert!(old.is_expired());
        assert_eq!(first_time(&old, "a.pem").as_deref(), Some("3 days ago"));
        assert_eq!(first_time(&old, "a.pem"), None);
        assert!(first_time(&old, "b.pem").is_some(), "it stands in another file too");
    }
}
