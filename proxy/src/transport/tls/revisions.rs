//! What a context is made of now, and the watch over peers that were let in by what it was made of before.
//!
//! Shared by both sides' contexts. The control thread publishes; handshakes and watches read on the workers.

use super::{
    Io,
    verify::{Peer, Refusal, Verified, Verifier},
};
use arc_swap::ArcSwapOption;
use rustls::pki_types::{CertificateDer, UnixTime};
use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
};

/// Where this runtime key is true, peers are looked at again when authorities or CRLs change.
pub const DRAIN_ON_TRUST_CHANGE: &str = "weft.tls.drain_on_trust_change";

/// What a peer that is trusted no longer has begun, or had from us, may take so long.
pub const LAST_WORDS: Duration = Duration::from_millis(500);

/// Ends once a peer is trusted no longer.
pub type Distrusted = Pin<Box<dyn Future<Output = ()>>>;

/// What peers are verified by.
pub trait Trust {
    /// Stands for the authorities and CRLs.
    fn trust(&self) -> u64;
    fn verifier(&self) -> Option<&Verifier>;
    /// Who the peers are.
    const PEER: Peer;

    /// Looks at a peer again that was verified in an earlier handshake, or some time ago. `san`: the name that it must have.
    /// True: it leads to something that is trusted.
    ///
    /// # Errors
    /// It would be refused now.
    fn verify_again(&self, chain: Option<&[CertificateDer<'_>]>, san: Option<&str>) -> Result<bool, Refusal> {
        let (Some(verifier), Some((leaf, rest))) = (self.verifier(), chain.and_then(<[_]>::split_first)) else {
            return if san.is_some() { Err(Refusal::unverifiable()) } else { Ok(false) };
        };
        Ok(verifier.verify(Self::PEER, leaf, rest, san, UnixTime::now())? == Verified::Trusted)
    }
}

/// The revision of a context that counts now.
#[derive(Debug)]
pub struct Revisions<R> {
    now: ArcSwapOption<R>,
    /// Told of each revision.
    changed: watch::Sender<()>,
}

impl<R> Default for Revisions<R> {
    fn default() -> Self {
        Self { now: ArcSwapOption::empty(), changed: watch::Sender::new(()) }
    }
}

impl<R: Trust> Revisions<R> {
    /// Handshakes from now on are by `revision`.
    pub fn publish(&self, revision: Arc<R>) {
        self.now.store(Some(revision));
        self.changed.send_replace(());
    }

    /// There are no handshakes from now on: a secret is no more.
    pub fn withdraw(&self) {
        self.now.store(None);
        self.changed.send_replace(());
    }

    /// What counts now; `None` while secrets are missing.
    pub fn now(&self) -> Option<Arc<R>> {
        self.now.load_full()
    }

    /// Waits until authorities or CRLs change so that a peer which was trusted would be trusted no longer. `trust`: of the
    /// revision by which it was.
    pub async fn distrusts(&self, peer_chain: &[Box<[u8]>], san: Option<&str>, mut trust: u64) {
        let mut changes = self.changed.subscribe();
        loop {
            // Also what changed while the handshake was under way. Without a secret nobody is let in.
            let Some(revision) = self.now() else { return };
            if revision.trust() != trust {
                trust = revision.trust();
                let chain: Vec<_> = peer_chain.iter().map(|der| CertificateDer::from(&der[..])).collect();
                if revision.verify_again(Some(&chain), san).is_err() {
                    return;
                }
            }
            if changes.changed().await.is_err() {
                // The context is gone with its listener or cluster, which ends its connections in its own time.
                std::future::pending().await
            }
        }
    }
}

/// A connection that breaks off once its peer is trusted no longer.
pub struct Guarded {
    io: Io,
    distrusted: Distrusted,
    is_over: bool,
}

impl Guarded {
    pub fn new(io: Io, distrusted: Distrusted) -> Self {
        Self { io, distrusted, is_over: false }
    }

    fn look(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        self.is_over = self.is_over || self.distrusted.as_mut().poll(cx).is_ready();
        if self.is_over { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }
}

impl AsyncRead for Guarded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.look(cx)?;
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.look(cx)?;
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Verifies nobody whose name is asked for.
    struct Revision(u64);

    impl Trust for Revision {
        const PEER: Peer = Peer::Server;

        fn trust(&self) -> u64 {
            self.0
        }

        fn verifier(&self) -> Option<&Verifier> {
            None
        }
    }

    /// True if a watch that began under the first revision ends by what `change` does.
    fn ends(san: Option<&str>, change: impl FnOnce(&Revisions<Revision>)) -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let revisions = Revisions::default();
            revisions.publish(Arc::new(Revision(1)));
            let mut watch = Box::pin(revisions.distrusts(&[], san, 1));
            let mut cx = Context::from_waker(std::task::Waker::noop());
            assert!(watch.as_mut().poll(&mut cx).is_pending());
            change(&revisions);
            watch.as_mut().poll(&mut cx).is_ready()
        })
    }

    #[test]
    fn a_peer_is_cut_when_it_would_be_refused_or_nobody_is_trusted() {
        assert!(ends(Some("a.test"), |revisions| revisions.publish(Arc::new(Revision(2)))));
        assert!(ends(None, Revisions::withdraw), "the secret is gone");
    }

    #[test]
    fn a_peer_stays_when_nothing_changed_for_it() {
        assert!(!ends(None, |revisions| revisions.publish(Arc::new(Revision(2)))), "it would be let in again");
        assert!(!ends(Some("a.test"), |revisions| revisions.publish(Arc::new(Revision(1)))), "the same trust");
    }
}
