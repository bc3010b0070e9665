//! Secrets in force: those of the bootstrap, and those that contexts wait for or got over SDS.
//!
//! Lives in the store, on the control thread. What is looked for is a name at a source: the same name at another source
//! is another secret. A secret goes in as bytes. Before it takes the old one's place, every context that uses it is built
//! anew with it; if one cannot be, nothing changes. So a handshake sees a certificate, its key, the authorities and the
//! CRLs of one moment, and a bad secret disturbs nobody.

mod certificates;

pub use certificates::{ContextCertificates, Loaded};

use super::{
    Store,
    store::{ContextsChanged, Failure},
};
use crate::transport::tls::{ClientContext, Secrets, ServerContext, secrets::WatchedFile};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{Arc, Weak},
    time::SystemTime,
};
use weft_config::{
    ConfigSource, Context, Problem,
    config_source::Specifier,
    tls::{Secret, SecretRef, SecretValue, received},
};
use weft_control_api::{envoy::extensions::transport_sockets::tls::v3 as pb, workload::CLUSTER};
use xxhash_rust::xxh64::xxh64;
use zeroize::Zeroizing;

/// All secrets.
#[derive(Default)]
pub struct SecretStore {
    fixed: BTreeMap<String, SecretValue>,
    /// By name, one a source.
    streamed: BTreeMap<String, Vec<StreamedSecret>>,
    /// The bootstrap or a setting says where a SPIFFE Workload API is.
    pub has_workload_api: bool,
    /// Watched files that were read again, by path.
    files: BTreeMap<String, Bytes>,
    /// Contexts that are or were in force.
    followed: Vec<Followed>,
}

/// A secret that some context refers to, and what came of it.
pub struct StreamedSecret {
    pub reference: SecretRef,
    value: Option<SecretValue>,
    /// Stands for all that it was made of.
    fingerprint: u64,
    /// As it was sent, if it points to files.
    sent: Option<Zeroizing<Vec<u8>>>,
    /// A move in one of these means that its files have to be read again.
    directories: Vec<String>,
    /// For `/config_dump`, without what nobody may see.
    pub shown: Vec<u8>,
    pub version: String,
    pub updated: SystemTime,
    /// What was refused last.
    pub failure: Option<Failure>,
    is_given_up: bool,
    /// It was a certificate to present, and its source says that it is no more.
    is_identity_withdrawn: bool,
    /// Whose authorities it has, where its source says so.
    trust_domain: Option<Arc<str>>,
}

impl StreamedSecret {
    fn new(reference: SecretRef) -> Self {
        Self {
            reference,
            value: None,
            fingerprint: 0,
            sent: None,
            directories: Vec::new(),
            shown: Vec::new(),
            version: String::new(),
            updated: SystemTime::now(),
            failure: None,
            is_given_up: false,
            is_identity_withdrawn: false,
            trust_domain: None,
        }
    }

    /// It came.
    pub fn is_there(&self) -> bool {
        self.value.is_some()
    }
}

impl SecretStore {
    /// Takes a secret of the bootstrap.
    ///
    /// # Errors
    /// What is wrong with it as it stands; whether its content is any good shows where it is used.
    pub fn set_fixed(&mut self, secret: Secret) -> Result<(), Vec<Problem>> {
        let Secret { name, value } = secret;
        match self.fixed.contains_key(&name) {
            true => Err(vec![Problem::new("name", format!("Duplicate static secret name {name}"))]),
            false => {
                self.fixed.insert(name, value);
                Ok(())
            }
        }
    }

    /// The secrets that came over SDS, or are waited for.
    pub fn streamed(&self) -> impl Iterator<Item = &StreamedSecret> {
        self.streamed.values().flatten()
    }

    /// True if nobody has to wait for it.
    pub fn is_settled(&self, secret: &SecretRef) -> bool {
        secret.source.is_none() || self.find(secret).is_some_and(|found| found.value.is_some() || found.is_given_up)
    }

    fn find(&self, secret: &SecretRef) -> Option<&StreamedSecret> {
        self.streamed.get(&secret.name)?.iter().find(|found| is_same(&found.reference, secret))
    }

    fn find_mut(&mut self, secret: &SecretRef) -> Option<&mut StreamedSecret> {
        self.streamed.get_mut(&secret.name)?.iter_mut().find(|found| is_same(&found.reference, secret))
    }
}

/// True if both are one subscription. The aggregated stream and the SPIFFE Workload API are asked once, whoever waits and
/// however long.
fn is_same(a: &SecretRef, b: &SecretRef) -> bool {
    let is_aggregated = |source: &Option<ConfigSource>| match source.as_ref().map(|source| &source.specifier) {
        Some(Specifier::Ads | Specifier::SelfSource) => true,
        Some(Specifier::Api(api)) => api.aggregated,
        _ => false,
    };
    let both = |is: &dyn Fn(&SecretRef) -> bool| is(a) && is(b);
    a.name == b.name
        && (a.source == b.source || both(&|secret| is_aggregated(&secret.source)) || both(&is_of_workload_api))
}

/// True if the cluster that speaks the SPIFFE Workload API is asked for it.
fn is_of_workload_api(secret: &SecretRef) -> bool {
    let specifier = secret.source.as_ref().map(|source| &source.specifier);
    matches!(specifier, Some(Specifier::Api(api)) if !api.aggregated && api.service.cluster == CLUSTER)
}

impl Secrets for SecretStore {
    fn get(&self, secret: &SecretRef) -> Option<&SecretValue> {
        match secret.source {
            None => self.fixed.get(&secret.name),
            Some(_) => self.find(secret)?.value.as_ref(),
        }
    }

    fn is_given_up(&self, secret: &SecretRef) -> bool {
        self.find(secret).is_some_and(|found| found.is_given_up)
    }

    fn has_workload_api(&self) -> bool {
        self.has_workload_api
    }

    fn file(&self, path: &str) -> Option<Bytes> {
        self.files.get(path).cloned()
    }
}

/// All secrets, with one that is about to change.
struct Changed<'a> {
    others: &'a SecretStore,
    secret: Option<(&'a SecretRef, &'a SecretValue)>,
    file: Option<(&'a str, &'a Bytes)>,
}

impl Secrets for Changed<'_> {
    fn get(&self, secret: &SecretRef) -> Option<&SecretValue> {
        match self.secret {
            Some((changed, value)) if is_same(changed, secret) => Some(value),
            _ => self.others.get(secret),
        }
    }

    fn is_given_up(&self, secret: &SecretRef) -> bool {
        self.others.is_given_up(secret)
    }

    fn has_workload_api(&self) -> bool {
        self.others.has_workload_api
    }

    fn file(&self, path: &str) -> Option<Bytes> {
        match self.file {
            Some((changed, data)) if changed == path => Some(data.clone()),
            _ => self.others.file(path),
        }
    }
}

/// A context that was in force; it lives as long as connections that were made by it are watched.
#[derive(Debug)]
enum Followed {
    Server(Weak<ServerContext>),
    Client(Weak<ClientContext>),
}

impl Followed {
    fn live(&self) -> Option<Live> {
        let prefix = Arc::from("");
        match self {
            Self::Server(context) => context.upgrade().map(|context| Live::Server(context, prefix)),
            Self::Client(context) => context.upgrade().map(|context| Live::Client(context, prefix)),
        }
    }

    fn is_gone(&self) -> bool {
        match self {
            Self::Server(context) => context.strong_count() == 0,
            Self::Client(context) => context.strong_count() == 0,
        }
    }
}

impl SecretStore {
    /// Remembers these contexts, and forgets those that nobody has any more.
    fn follow(&mut self, contexts: &[Live]) {
        self.followed.retain(|followed| !followed.is_gone());
        let known: HashSet<_> = self.followed.iter().filter_map(Followed::live).map(|live| live.address()).collect();
        let new = contexts.iter().filter(|context| !known.contains(&context.address()));
        self.followed.extend(new.map(Live::followed));
    }
}

/// A context in use, and below which prefix it is counted.
enum Live {
    Server(Arc<ServerContext>, Arc<str>),
    Client(Arc<ClientContext>, Arc<str>),
}

impl Live {
    /// Tells it from any other.
    fn address(&self) -> *const () {
        match self {
            Self::Server(context, _) => Arc::as_ptr(context).cast(),
            Self::Client(context, _) => Arc::as_ptr(context).cast(),
        }
    }

    fn followed(&self) -> Followed {
        match self {
            Self::Server(context, _) => Followed::Server(Arc::downgrade(context)),
            Self::Client(context, _) => Followed::Client(Arc::downgrade(context)),
        }
    }

    /// There are no handshakes from now on, and nobody stays who is watched.
    fn withdraw(&self) {
        match self {
            Self::Server(context, _) => context.revisions.withdraw(),
            Self::Client(context, _) => context.revisions.withdraw(),
        }
    }

    fn uses(&self, secret: &SecretRef) -> bool {
        match self {
            Self::Server(context, _) => context.config.secrets().any(|used| is_same(used, secret)),
            Self::Client(context, _) => context.config.secrets().any(|used| is_same(used, secret)),
        }
    }

    fn watched(&self) -> Option<WatchedFile> {
        match self {
            Self::Server(context, _) => context.revisions.now()?.watched.clone(),
            Self::Client(context, _) => context.revisions.now()?.watched.clone(),
        }
    }

    /// Builds it anew; what is given back puts the result in force. `None`: something is missing, or a problem was
    /// reported.
    fn prepare(&self, secrets: &dyn Secrets, cx: &mut Context) -> Option<Box<dyn FnOnce()>> {
        match self {
            Self::Server(context, _) => {
                let (context, revision) = (context.clone(), context.prepare(secrets, cx)?);
                Some(Box::new(move || context.revisions.publish(revision)))
            }
            Self::Client(context, _) => {
                let (context, revision) = (context.clone(), context.prepare(secrets, cx)?);
                Some(Box::new(move || context.revisions.publish(revision)))
            }
        }
    }
}

/// A context that was built anew, by the prefix of its stats.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Updated {
    /// `listener.ADDRESS`
    Server(Arc<str>),
    /// `cluster.NAME`
    Client(Arc<str>),
}

impl Store {
    /// Every context, in force and warming.
    fn contexts(&self) -> Vec<Live> {
        let mut seen: HashSet<*const ()> = HashSet::new();
        let mut all = Vec::new();
        let warming = self.warming_listeners.values();
        for listener in self.listeners.iter().map(|(_, entry)| entry).chain(warming).map(|entry| &entry.value) {
            let prefix: Arc<str> = format!("listener.{}", listener.facts.stat_name).into();
            for tls in listener.chains.iter().chain(&listener.default_chain).filter_map(|chain| chain.tls.as_ref()) {
                if seen.insert(Arc::as_ptr(tls).cast()) {
                    all.push(Live::Server(tls.clone(), prefix.clone()));
                }
            }
        }
        for cluster in self.all_clusters() {
            for tls in cluster.info.transport_sockets().filter_map(|socket| socket.tls()) {
                if seen.insert(Arc::as_ptr(tls).cast()) {
                    all.push(Live::Client(tls.clone(), cluster.info.stat_prefix.clone()));
                }
            }
        }
        all
    }

    /// Contexts that are in force no longer, and by which there still are connections.
    fn superseded(&self) -> Vec<Live> {
        let now: HashSet<_> = self.contexts().iter().map(Live::address).collect();
        let followed = self.secrets.followed.iter().filter_map(Followed::live);
        followed.filter(|context| !now.contains(&context.address())).collect()
    }

    /// Keeps a seat for each secret that contexts refer to, and gives all of them with their sources. What nothing refers
    /// to any more is forgotten.
    pub fn follow_secrets(&mut self) -> Vec<SecretRef> {
        if self.clusters.take_reconfigured() {
            self.contexts_changed = ContextsChanged::ALL;
        }
        if !std::mem::take(&mut self.contexts_changed.secrets) {
            return self.secrets.streamed().map(|seat| seat.reference.clone()).collect();
        }
        let mut wanted: Vec<SecretRef> = Vec::new();
        let mut by_name: BTreeMap<&str, Vec<&SecretRef>> = BTreeMap::new();
        let contexts = self.contexts();
        self.secrets.follow(&contexts);
        for context in &contexts {
            let references: Vec<&SecretRef> = match context {
                Live::Server(context, _) => context.config.secrets().collect(),
                Live::Client(context, _) => context.config.secrets().collect(),
            };
            for reference in references.into_iter().filter(|reference| reference.source.is_some()) {
                let known = by_name.entry(&reference.name).or_default();
                if !known.iter().any(|known| is_same(known, reference)) {
                    known.push(reference);
                    wanted.push(reference.clone());
                }
            }
        }
        let is_wanted = |found: &StreamedSecret| {
            let known = by_name.get(found.reference.name.as_str());
            known.is_some_and(|known| known.iter().any(|reference| is_same(reference, &found.reference)))
        };
        let streamed = &mut self.secrets.streamed;
        streamed.values_mut().for_each(|seats| seats.retain(is_wanted));
        streamed.retain(|_, seats| !seats.is_empty());
        for reference in &wanted {
            let seats = streamed.entry(reference.name.clone()).or_default();
            match seats.iter().find(|seat| is_same(&seat.reference, reference)) {
                Some(_) => {}
                None => seats.push(StreamedSecret::new(reference.clone())),
            }
        }
        // As they were subscribed to.
        self.secrets.streamed().map(|seat| seat.reference.clone()).collect()
    }

    /// Takes a secret that came for a reference: every context that uses it is built anew. True if something changed.
    ///
    /// # Errors
    /// What is wrong with it. The old one stays; who waited for it waits no longer.
    pub fn set_secret(&mut self, of: &SecretRef, bytes: &[u8], version: &str) -> Result<bool, Vec<Problem>> {
        let taken = self.take_secret(of, bytes, version);
        if let Err(problems) = &taken {
            let details = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            let shown = self.read::<pb::Secret>(bytes).map(|(proto, _)| received::shown(proto)).unwrap_or_default();
            if let Some(seat) = self.secrets.find_mut(of) {
                seat.is_given_up = seat.value.is_none();
                seat.failure =
                    Some(Failure { bytes: shown, version: version.to_owned(), details, at: SystemTime::now() });
            }
        }
        taken
    }

    fn take_secret(&mut self, of: &SecretRef, bytes: &[u8], version: &str) -> Result<bool, Vec<Problem>> {
        let (mut proto, mut cx) = self.read::<pb::Secret>(bytes)?;
        if proto.name != of.name {
            let message = format!("Unexpected SDS secret (expecting {}): {}", of.name, proto.name);
            return Err(vec![Problem::new("name", message)]);
        }
        let files = received::take_in_files(&mut proto, &mut cx);
        // Whoever has this number learns nothing of the keys.
        let fingerprint = xxh64(&Zeroizing::new(weft_control_api::Message::encode_to_vec(&proto)), 0);
        let Some(seat) = self.secrets.find(of) else { return Ok(false) };
        if seat.value.is_some() && seat.fingerprint == fingerprint && !cx.has_problems() {
            if let Some(seat) = self.secrets.find_mut(of) {
                version.clone_into(&mut seat.version);
                seat.failure = None;
            }
            return Ok(false);
        }
        let shown = received::shown(proto.clone());
        let read = Secret::from_proto(proto, &mut cx);
        let (Secret { value, .. }, _) = cx.finish(read)?;
        let changed = Changed { others: &self.secrets, secret: Some((of, &value)), file: None };
        let built = self.rebuild(|context| context.uses(of), &changed).map_err(|mut problems| {
            files.name_in(&mut problems);
            problems
        })?;
        self.put_in_force(built);
        let directories = files.directories;
        if let Some(seat) = self.secrets.find_mut(of) {
            seat.sent = (!directories.is_empty()).then(|| Zeroizing::new(bytes.to_vec()));
            seat.value = Some(value);
            (seat.fingerprint, seat.directories, seat.shown) = (fingerprint, directories, shown);
            (seat.version, seat.updated) = (version.to_owned(), SystemTime::now());
            seat.failure = None;
            seat.is_identity_withdrawn = false;
        }
        Ok(true)
    }

    /// Builds the contexts that are `affected` with other secrets. All of them can be, or none is.
    fn rebuild(
        &self,
        affected: impl Fn(&Live) -> bool + Copy,
        secrets: &dyn Secrets,
    ) -> Result<Vec<Built>, Vec<Problem>> {
        let mut built = Vec::new();
        for context in self.contexts().into_iter().filter(affected) {
            let mut cx = Context::new();
            let put = context.prepare(secrets, &mut cx);
            if cx.has_problems() {
                return Err(cx.finish::<()>(None).err().unwrap_or_default());
            }
            let of = match context {
                Live::Server(_, prefix) => Updated::Server(prefix),
                Live::Client(_, prefix) => Updated::Client(prefix),
            };
            built.push(Built { of: Some(of), put });
        }
        // What is not in force any more holds nothing up.
        for context in self.superseded().into_iter().filter(affected) {
            let mut cx = Context::new();
            let put = context.prepare(secrets, &mut cx).filter(|_| !cx.has_problems());
            built.push(Built { of: None, put });
        }
        Ok(built)
    }

    fn put_in_force(&mut self, built: Vec<Built>) {
        self.contexts_changed = ContextsChanged::ALL;
        for Built { of, put } in built {
            self.updated_contexts.extend(of);
            if let Some(put) = put {
                put();
            }
        }
    }

    /// Its source says that it is no more: who uses it has none from now on. True if it was there.
    pub fn unload_secret(&mut self, of: &SecretRef) -> bool {
        self.contexts_changed = ContextsChanged::ALL;
        let Some(seat) = self.secrets.find_mut(of) else { return false };
        let was = seat.value.take();
        seat.is_given_up = true;
        seat.is_identity_withdrawn |= matches!(was, Some(SecretValue::TlsCertificate(_)));
        (seat.sent, seat.shown, seat.updated) = (None, Vec::new(), SystemTime::now());
        seat.directories.clear();
        if was.is_some() {
            let all = self.contexts().into_iter().chain(self.superseded());
            all.filter(|context| context.uses(of)).for_each(|context| context.withdraw());
        }
        was.is_some()
    }

    /// Notes whose authorities a secret has.
    pub fn note_trust_domain(&mut self, of: &SecretRef, domain: Option<&str>) {
        if let Some(seat) = self.secrets.find_mut(of) {
            seat.trust_domain = domain.map(Arc::from);
        }
    }

    /// True if the source of a certificate that was presented said that it is no more: who needs it has none.
    pub fn is_identity_withdrawn(&self) -> bool {
        self.secrets.streamed().any(|seat| seat.is_identity_withdrawn)
    }

    /// True if every certificate that is presented is past its end. Without any it is false.
    pub fn is_identity_expired(&self) -> bool {
        let all = self.contexts().into_iter().flat_map(|context| match context {
            Live::Server(context, _) => context.revisions.now().map(|r| r.identities.clone()).unwrap_or_default(),
            Live::Client(context, _) => context.revisions.now().and_then(|r| r.identity.clone()).into_iter().collect(),
        });
        let mut all = all.peekable();
        all.peek().is_some() && all.all(|identity| identity.certificate.is_expired())
    }

    /// Nobody waits for it any longer.
    pub fn give_up_secret(&mut self, of: &SecretRef) {
        if let Some(seat) = self.secrets.find_mut(of) {
            seat.is_given_up = true;
        }
    }

    /// The directories in which a move means that something has to be read again.
    /// `None`: as the last time.
    pub fn watched_directories(&mut self) -> Option<BTreeSet<String>> {
        if !std::mem::take(&mut self.contexts_changed.files) {
            return None;
        }
        let of_secrets = self.secrets.streamed().flat_map(|seat| seat.directories.iter().cloned());
        let of_contexts = self.contexts().into_iter().filter_map(|context| Some(context.watched()?.directory));
        Some(of_secrets.chain(of_contexts).collect())
    }

    /// Reads again all that is in watched files. Gives the names of the secrets whose new files are no good: the old
    /// ones stay.
    pub fn reload_files(&mut self) -> Vec<(String, Vec<Problem>)> {
        let mut failed = Vec::new();
        let seats = self
            .secrets
            .streamed()
            .filter_map(|seat| Some((seat.reference.clone(), seat.sent.clone()?, seat.version.clone())));
        for (reference, sent, version) in seats.collect::<Vec<_>>() {
            if let Err(problems) = self.take_secret(&reference, &sent, &version) {
                failed.push((reference.name, problems));
            }
        }
        let watched: BTreeSet<String> =
            self.contexts().iter().filter_map(Live::watched).map(|watched| watched.path).collect();
        self.secrets.files.retain(|path, _| watched.contains(path));
        for path in watched {
            if let Err(problems) = self.reload_file(&path) {
                tracing::warn!(target: "config", "{path}: {}", problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "));
            }
        }
        failed
    }

    /// Reads a file again that contexts were made of.
    fn reload_file(&mut self, path: &str) -> Result<(), Vec<Problem>> {
        let data = std::fs::read(path).map_err(|e| vec![Problem::new("", format!("cannot be read: {e}"))])?;
        let data = Bytes::from(data);
        if self.secrets.files.get(path) == Some(&data) {
            return Ok(());
        }
        let changed = Changed { others: &self.secrets, secret: None, file: Some((path, &data)) };
        let uses = |context: &Live| context.watched().is_some_and(|watched| watched.path == path);
        let built = self.rebuild(uses, &changed)?;
        self.contexts_changed = ContextsChanged::ALL;
        // It is no secret that came over SDS, so that is not counted.
        built.into_iter().filter_map(|built| built.put).for_each(|put| put());
        self.secrets.files.insert(path.to_owned(), data);
        Ok(())
    }
}

/// A context that was built, and how it is put in force if nothing is missing.
struct Built {
    of: Option<Updated>,
    put: Option<Box<dyn FnOnce()>>,
}
