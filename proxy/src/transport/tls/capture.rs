//! What a handshake's verifier found, carried past rustls to whoever drives the handshake.
//!
//! rustls keeps only an error, and drops it where it sends an alert. Verifiers run inside a poll of the handshake, so what
//! they leave on this thread belongs to the handshake that is being polled: [`around`] takes it at once.

use super::{
    material::Identity,
    staple::Action,
    verify::{Refusal, Verified},
};
use rustls::SignatureScheme;
use std::{
    cell::{Cell, RefCell},
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
    /// What became of the staple of it.
    pub staple: Option<Action>,
    /// What we presented.
    pub presented: Option<Arc<Identity>>,
}

thread_local! {
    /// The client whose handshake begins asks for a staple.
    static ASKS: Cell<bool> = const { Cell::new(false) };
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

/// The handshake that begins now is with a client that asks for a staple, or not.
pub fn client_asks_for_staple(asks: bool) {
    ASKS.set(asks);
}

/// What was said last of the client whose handshake begins.
pub fn asks_for_staple() -> bool {
    ASKS.get()
}

/// This becomes of the staple.
pub fn staple(action: Action) {
    FOUND.with_borrow_mut(|found| found.staple = Some(action));
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
        let Found { verified, refusal, scheme, staple, presented } = FOUND.take();
        all.verified = verified.or(all.verified);
        all.refusal = refusal.or(all.refusal.take());
        all.scheme = scheme.or(all.scheme);
        all.staple = staple.or(all.staple);
        all.presented = presented.or(all.presented.take());
        result
    })
    .await;
    (result, all)
}
