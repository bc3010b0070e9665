//! SPIFFE bundle maps (SPIFFE Trust Domain and Bundle, 4): JSON that holds the authorities of trust domains.
//!
//! Invariant: a map is taken whole or not at all; of a trust domain that it has twice nothing is taken.

use super::{parsed::Parsed, spiffe};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use std::{fmt, sync::Arc};

/// Authorities of one trust domain; none: nothing of it is trusted.
pub type Bundle = (String, Vec<Arc<Parsed>>);

/// Reads a map.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn parse(json: &[u8]) -> Result<Vec<Bundle>, String> {
    let map: BundleMap = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    map.trust_domains.0.into_iter().map(|(name, bundle)| bundle.read(name)).collect()
}

#[derive(Deserialize)]
struct BundleMap {
    trust_domains: Entries<RawBundle>,
}

/// A bundle as RFC 7517 has key sets. What else stands in it is of no effect.
#[derive(Deserialize)]
struct RawBundle {
    /// Sequence and refreshing are for who fetches bundles; here the file's changes count.
    #[serde(default, rename = "spiffe_sequence")]
    _sequence: Option<u64>,
    #[serde(default, rename = "spiffe_refresh_hint")]
    _refresh_hint: Option<u64>,
    #[serde(default)]
    keys: Option<Vec<Key>>,
}

#[derive(Deserialize)]
struct Key {
    #[serde(default)]
    kty: String,
    #[serde(default, rename = "use")]
    usage: String,
    #[serde(default)]
    x5c: Vec<String>,
}

impl RawBundle {
    fn read(self, name: String) -> Result<Bundle, String> {
        if !spiffe::is_trust_domain(&name) {
            return Err(format!("found {name:?}, which is no SPIFFE trust domain"));
        }
        // Keys of kinds and uses that are not known are to be left aside.
        let is_known = |key: &Key| key.usage == "x509-svid" && matches!(&*key.kty, "EC" | "RSA" | "OKP");
        let keys = self.keys.unwrap_or_default();
        let keys = keys.iter().enumerate().filter(|(_, key)| is_known(key));
        let authorities = keys
            .map(|(i, key)| {
                let found = || format!("found for {name} key {i}, which");
                // Only the first certificate is the key's.
                let text = key.x5c.first().ok_or_else(|| format!("{} has no x5c", found()))?;
                let der = STANDARD.decode(text).map_err(|_| format!("{} has an x5c that is no base64", found()))?;
                Ok(Arc::new(Parsed::parse(&der).map_err(|why| format!("{} has an x5c that {why}", found()))?))
            })
            .collect::<Result<_, String>>()?;
        Ok((name, authorities))
    }
}

/// The entries of a JSON object with each name once.
struct Entries<T>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Once<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Once<T> {
            type Value = Entries<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut names = std::collections::HashSet::new();
                let mut entries = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, T>()? {
                    if !names.insert(name.clone()) {
                        return Err(serde::de::Error::custom(format!("found {name:?} twice")));
                    }
                    entries.push((name, value));
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(Once(std::marker::PhantomData))
    }
}
