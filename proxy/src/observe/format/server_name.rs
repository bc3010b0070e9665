//! `%REQUESTED_SERVER_NAME%`: the name that a client asked for, by SNI or by its request's host.

use super::Facts;
use crate::http::header_names::ENVOY_ORIGINAL_HOST;
use std::borrow::Cow;

/// Where the name comes from.
#[derive(Clone, Copy, Debug)]
pub struct ServerName {
    name: Name,
    host: Host,
}

#[derive(Clone, Copy, Debug)]
enum Name {
    SniOnly,
    SniFirst,
    HostFirst,
}

/// Which of a request's hosts.
#[derive(Clone, Copy, Debug)]
enum Host {
    Original,
    Current,
    OriginalOrCurrent,
}

impl ServerName {
    pub fn parse(argument: &str) -> Result<Self, String> {
        let mut words = argument.split(':');
        let name = match words.next().unwrap_or_default() {
            "" | "SNI_ONLY" => Name::SniOnly,
            "SNI_FIRST" => Name::SniFirst,
            "HOST_FIRST" => Name::HostFirst,
            other => return Err(format!("{other:?} is not SNI_ONLY, SNI_FIRST or HOST_FIRST")),
        };
        let host = match words.next().unwrap_or_default() {
            "" | "ORIG_OR_HOST" => Host::OriginalOrCurrent,
            "ORIG" => Host::Original,
            "HOST" => Host::Current,
            other => return Err(format!("{other:?} is not ORIG, HOST or ORIG_OR_HOST")),
        };
        Ok(Self { name, host })
    }

    pub fn find<'a>(self, facts: &Facts<'a>) -> Option<Cow<'a, str>> {
        let sni = || facts.info.connection.requested_server_name.as_deref().map(Cow::from);
        match self.name {
            Name::SniOnly => sni(),
            Name::SniFirst => sni().or_else(|| self.host.find(facts)),
            Name::HostFirst => self.host.find(facts).or_else(sni),
        }
    }
}

impl Host {
    fn find<'a>(self, facts: &Facts<'a>) -> Option<Cow<'a, str>> {
        let head = facts.request?;
        let text = |value: &'a [u8]| Some(value).filter(|value| !value.is_empty()).map(String::from_utf8_lossy);
        let original = || text(head.headers.get(&ENVOY_ORIGINAL_HOST)?.as_bytes());
        let current = || text(&head.authority);
        match self {
            Self::Original => original(),
            Self::Current => current(),
            Self::OriginalOrCurrent => original().or_else(current),
        }
    }
}
