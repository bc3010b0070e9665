//! What a handshake's verifier found, carried past rustls to whoever drives the handshake.
//!
//! rustls keeps only an error, and drops it where it sends an alert. Verifiers run inside a poll of the handshake, so what
//! they leave on this thread belongs to the handshake that is being polled: [`around`] takes it at once.

use super::{
    material::Identity,
    verify::{Refusal, Verified},
};
use rustls::SignatureScheme;
use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
};

/// What was found during a handshake.
#[derive(Clone, Debug, Default)]
pub struct Found {
    pub verified: Option<Verified>,
    pub refusal: Option<Refusal>,
    /// With which the peer signed.
    pub scheme: Option<SignatureScheme>,
    /// What we presented.
    pub presented: Option<Arc<Identity>>,
}

thread_local! {
    static FOUND: RefCell<Found> = RefCell::default();
}

/// A verifier's verdict.
pub fn verdict(verdict: &Result<Verified, Refusal>) {
    FOUND.with_borrow_mut(|found| match verdict {
        Ok(verified) => found.verified = Some(*verified),
        Err(refusal) => found.refusal = Some(refusal.clone()),
    });
}

/// The peer signed with this.
pub fn scheme(scheme: SignatureScheme) {
    FOUND.with_borrow_mut(|found| found.scheme = Some(scheme));
}

/// We present this.
pub fn presented(identity: &Arc<Identity>) {
    FOUND.with_borrow_mut(|found| found.presented = Some(identity.clone()));
}

/// Drives a handshake and gives what was found in it.
pub async fn around<T>(handshake: impl Future<Output = T>) -> (T, Found) {
    let mut handshake = pin!(handshake);
    let mut all = Found::default();
    let result = poll_fn(|cx| {
        let result = handshake.as_mut().poll(cx);
        let Found { verified, refusal, scheme, presented } = FOUND.take();
        all.verified = verified.or(all.verified);
        all.refusal = refusal.or(all.refusal.take());
        all.scheme = scheme.or(all.scheme);
        all.presented = presented.or(all.presented.take());
        result
    })
    .await;
    (result, all)
}
