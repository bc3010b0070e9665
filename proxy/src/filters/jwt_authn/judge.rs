//! Whether a request's tokens are what is required of it. Changes nothing: what good tokens bring about is done by who asked.

use super::{
    Worker,
    config::{Audiences, Keys, Location, Provider, Requirement},
    jwks::Jwks,
    token::{AUDIENCE, FETCH, Failure, MISSING, NO_VALID_KEYS, Token, UNKNOWN_ISSUER, VERIFICATION},
};
use crate::{
    http::{
        RequestHead,
        message::{query_of, query_parameter},
    },
    route::cookie,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use foldhash::HashMap;
use serde_json::{Map, Value};
use std::{
    collections::VecDeque,
    rc::Rc,
    time::{SystemTime, UNIX_EPOCH},
};

/// What came of it.
pub(super) enum Judged {
    Passes(Vec<Good>),
    Fails(Failure),
    /// The keys of this provider have to be fetched first.
    NeedsKeys(usize),
}

/// A token that was verified.
pub(super) struct Good {
    pub provider: usize,
    pub token: Rc<Token>,
    pub location: Location,
}

/// A token as it was found.
struct Found<'p> {
    text: String,
    location: &'p Location,
    /// Those whose tokens may be there.
    providers: Vec<usize>,
}

enum Stop {
    Fails(Failure),
    NeedsKeys(usize),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Fails(failure)
    }
}

/// Tokens that were verified, up to so many; the oldest go first.
#[derive(Default)]
pub(super) struct Remembered {
    tokens: HashMap<Box<str>, Rc<Token>>,
    order: VecDeque<Box<str>>,
    /// The keys that verified them, where these may change.
    keys: Option<Rc<Jwks>>,
}

impl Remembered {
    fn get(&mut self, text: &str, keys: Option<&Rc<Jwks>>) -> Option<Rc<Token>> {
        if !same(self.keys.as_ref(), keys) {
            *self = Self { keys: keys.cloned(), ..Self::default() };
        }
        self.tokens.get(text).cloned()
    }

    fn insert(&mut self, text: &str, token: &Rc<Token>, most: usize) {
        while self.tokens.len() >= most {
            let Some(oldest) = self.order.pop_front() else { return };
            self.tokens.remove(&oldest);
        }
        if self.tokens.insert(text.into(), token.clone()).is_none() {
            self.order.push_back(text.into());
        }
    }
}

fn same(a: Option<&Rc<Jwks>>, b: Option<&Rc<Jwks>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Rc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

impl Worker {
    pub(super) fn judge(&self, request: &RequestHead, requirement: &Requirement, failed: &[usize]) -> Judged {
        let mut good = Vec::new();
        match self.meets(request, requirement, failed, &mut good) {
            Ok(()) => Judged::Passes(good),
            Err(Stop::Fails(failure)) => Judged::Fails(failure),
            Err(Stop::NeedsKeys(number)) => Judged::NeedsKeys(number),
        }
    }

    fn meets(
        &self,
        request: &RequestHead,
        requirement: &Requirement,
        failed: &[usize],
        good: &mut Vec<Good>,
    ) -> Result<(), Stop> {
        match requirement {
            Requirement::Provider(number, audiences) => {
                let found = self.find(request, &[*number]);
                if found.is_empty() {
                    return Err(MISSING.into());
                }
                found.iter().try_for_each(|found| self.check(found, Some(*number), audiences.as_ref(), failed, good))
            }
            Requirement::AllowMissing | Requirement::AllowMissingOrFailed => {
                let all: Vec<usize> = (0..self.config.providers.len()).collect();
                let lenient = matches!(requirement, Requirement::AllowMissingOrFailed);
                for found in self.find(request, &all) {
                    match self.check(&found, None, None, failed, good) {
                        Err(Stop::Fails(_)) if lenient => {}
                        other => other?,
                    }
                }
                Ok(())
            }
            Requirement::All(all) => {
                for requirement in all {
                    self.meets(request, requirement, failed, good)?;
                }
                Ok(())
            }
            Requirement::Any(any) => self.meets_any(request, any, failed, good),
        }
    }

    /// One of them is enough. What is wrong with a token says more than that there is none, or one of somebody else's.
    fn meets_any(
        &self,
        request: &RequestHead,
        any: &[Requirement],
        failed: &[usize],
        good: &mut Vec<Good>,
    ) -> Result<(), Stop> {
        let mut worst = None;
        let before = good.len();
        let lenient = |r: &&Requirement| matches!(r, Requirement::AllowMissing | Requirement::AllowMissingOrFailed);
        for requirement in any.iter().filter(|r| !lenient(r)) {
            match self.meets(request, requirement, failed, good) {
                Ok(()) => return Ok(()),
                Err(Stop::Fails(failure)) => {
                    good.truncate(before);
                    let says_little = failure == MISSING || failure == UNKNOWN_ISSUER;
                    if worst.is_none() || !says_little {
                        worst = Some(failure);
                    }
                }
                Err(stop) => return Err(stop),
            }
        }
        let failure = worst.unwrap_or(MISSING);
        let passes = any
            .iter()
            .filter(lenient)
            .any(|requirement| matches!(requirement, Requirement::AllowMissingOrFailed) || failure == MISSING);
        if passes { Ok(()) } else { Err(failure.into()) }
    }

    /// The tokens at the places where these providers' may be.
    fn find(&self, request: &RequestHead, providers: &[usize]) -> Vec<Found<'_>> {
        let mut all: Vec<Found<'_>> = Vec::new();
        let kinds: [fn(&Location) -> bool; 3] = [
            |location| matches!(location, Location::Header { .. }),
            |location| matches!(location, Location::Parameter(_)),
            |location| matches!(location, Location::Cookie(_)),
        ];
        for kind in kinds {
            for &number in providers {
                for location in self.config.providers[number].locations.iter().filter(|location| kind(location)) {
                    if let Some(known) = all.iter_mut().find(|found| found.location == location) {
                        known.providers.push(number);
                    } else if let Some(text) = text_at(request, location) {
                        all.push(Found { text, location, providers: vec![number] });
                    }
                }
            }
        }
        all
    }

    /// Tests one token, for `number` or for whoever issued it.
    fn check(
        &self,
        found: &Found<'_>,
        number: Option<usize>,
        audiences: Option<&Audiences>,
        failed: &[usize],
        good: &mut Vec<Good>,
    ) -> Result<(), Stop> {
        let remembered = number.and_then(|number| self.remembered(number, &found.text));
        let (token, is_verified) = match remembered {
            Some(token) => (token, true),
            None => (Rc::new(Token::parse(&found.text)?), false),
        };
        let is_from = |number: &usize| {
            let issuer = &self.config.providers[*number].issuer;
            issuer.is_empty() || *issuer == token.issuer
        };
        let number = number.filter(is_from).or_else(|| match number {
            Some(_) => None,
            None => found.providers.iter().copied().find(is_from),
        });
        let number = number.ok_or(UNKNOWN_ISSUER)?;
        let provider = &self.config.providers[number];
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        token.check_time(now, provider.clock_skew)?;
        if !audiences.unwrap_or(&provider.audiences).allow(&token.audiences) {
            return Err(AUDIENCE.into());
        }
        let subject_fits = provider.subjects.as_ref().is_none_or(|matcher| matcher.matches(&token.subject));
        if !subject_fits || !token.check_lifetime(now, provider.require_expiration, provider.max_lifetime) {
            return Err(VERIFICATION.into());
        }
        if !is_verified {
            self.verify(number, provider, &token, failed)?;
            if let Some((most, longest)) = provider.cache
                && found.text.len() <= longest
            {
                let mut all = self.remembered.borrow_mut();
                all[number].insert(&found.text, &token, most);
            }
        }
        good.push(Good { provider: number, token, location: found.location.clone() });
        Ok(())
    }

    /// The token, if it was verified before.
    fn remembered(&self, number: usize, text: &str) -> Option<Rc<Token>> {
        let keys = self.fetched[number].keys();
        if matches!(self.config.providers[number].keys, Keys::Remote(_)) && keys.is_none() {
            // It is judged again once they are there.
            return None;
        }
        let found = self.config.providers[number]
            .cache
            .and_then(|_| self.remembered.borrow_mut()[number].get(text, keys.as_ref()));
        // Where nothing is remembered, too: so Envoy counts.
        if found.is_some() { &self.stats.jwt_cache_hit } else { &self.stats.jwt_cache_miss }.inc();
        found
    }

    fn verify(&self, number: usize, provider: &Provider, token: &Token, failed: &[usize]) -> Result<(), Stop> {
        match &provider.keys {
            Keys::Local(Some(keys)) => Ok(keys.verify(token)?),
            Keys::Local(None) => Err(NO_VALID_KEYS.into()),
            Keys::Remote(_) => match self.fetched[number].keys() {
                Some(keys) => Ok(keys.verify(token)?),
                None if failed.contains(&number) => Err(FETCH.into()),
                None => Err(Stop::NeedsKeys(number)),
            },
        }
    }
}

fn text_at(request: &RequestHead, location: &Location) -> Option<String> {
    match location {
        Location::Header { name, prefix } => {
            let mut values = request.headers.get_all(name).iter().map(|value| value.as_bytes());
            let first = values.next()?;
            let all = values.fold(first.to_vec(), |all, next| [&all[..], b",", next].concat());
            let text = String::from_utf8_lossy(&all);
            Some(text.strip_prefix(prefix.as_str())?.to_owned())
        }
        Location::Parameter(name) => query_parameter(query_of(&request.path), name).map(str::to_owned),
        Location::Cookie(name) => {
            cookie(&request.headers, name).map(|value| String::from_utf8_lossy(value).into_owned())
        }
    }
    .filter(|text| !text.is_empty() || matches!(location, Location::Header { .. }))
}

/// Takes a token out of the request. Cookies stay: they are not this filter's to write.
pub(super) fn remove(request: &mut RequestHead, location: &Location) {
    match location {
        Location::Header { name, .. } => drop(request.headers.remove(name)),
        Location::Parameter(name) => {
            let Some(at) = memchr::memchr(b'?', &request.path) else { return };
            let of = |pair: &&[u8]| pair.split(|b| *b == b'=').next() != Some(name.as_bytes());
            let rest: Vec<&[u8]> = request.path[at + 1..].split(|b| *b == b'&').filter(of).collect();
            let separator: &[u8] = if rest.is_empty() { b"" } else { b"?" };
            request.path = [&request.path[..at], separator, &rest.join(&b'&')].concat().into();
        }
        Location::Cookie(_) => {}
    }
}

/// A claim as a header's value; `None` for what is not there or has no text.
pub(super) fn claim(payload: &Map<String, Value>, path: &[String]) -> Option<String> {
    let (last, way) = path.split_last()?;
    let map = way.iter().try_fold(payload, |map, name| map.get(name)?.as_object())?;
    Some(match map.get(last)? {
        Value::Null => return None,
        Value::Bool(value) => value.to_string(),
        Value::String(text) => text.clone(),
        Value::Number(n) => match n.as_i64() {
            Some(n) => n.to_string(),
            None => {
                let n = n.as_f64()?;
                if n.fract() == 0.0 && n.abs() < 1e15 { format!("{n:.0}") } else { format!("{n:.6}") }
            }
        },
        value @ (Value::Object(_) | Value::Array(_)) => STANDARD.encode(value.to_string()),
    })
}
