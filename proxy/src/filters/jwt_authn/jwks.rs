//! A set of keys (RFC 7517), and whether one of them signed a token.
//!
//! A key that cannot be read is left out, as long as there is another one. A key verifies only what its type can sign: no
//! public key is ever taken for a secret.

use super::token::{Algorithm, BASE64, Failure, NO_KEY, Token, VERIFICATION};
use aws_lc_rs::{
    hmac,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519, ParsedPublicKey,
        RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256,
        RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents,
    },
};
use base64::Engine as _;
use serde_json::{Map, Value};

/// Keys of one provider.
#[derive(Debug)]
pub struct Jwks(Vec<Jwk>);

#[derive(Debug)]
struct Jwk {
    kid: String,
    algorithm: Option<Algorithm>,
    key: Key,
}

#[derive(Debug)]
enum Key {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// Verifies one algorithm.
    Point(Algorithm, ParsedPublicKey),
    Secret(Vec<u8>),
}

impl Jwks {
    /// Reads a set of keys; `None` if none of them does.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let set: Map<String, Value> = serde_json::from_slice(text).ok()?;
        let keys: Vec<_> = set.get("keys")?.as_array()?.iter().filter_map(Jwk::parse).collect();
        (!keys.is_empty()).then_some(Self(keys))
    }

    /// Tests a token's signature.
    ///
    /// # Errors
    /// No key is meant for it, or those that are did not sign it.
    pub fn verify(&self, token: &Token) -> Result<(), Failure> {
        let fits = |jwk: &&Jwk| {
            (token.kid.is_empty() || jwk.kid.is_empty() || jwk.kid == token.kid)
                && jwk.algorithm.is_none_or(|algorithm| algorithm == token.algorithm)
        };
        let mut failure = NO_KEY;
        for jwk in self.0.iter().filter(fits) {
            if jwk.key.signed(token) {
                return Ok(());
            }
            failure = VERIFICATION;
        }
        Err(failure)
    }
}

impl Jwk {
    fn parse(value: &Value) -> Option<Self> {
        let fields = value.as_object()?;
        let text = |name: &str| match fields.get(name) {
            None => Some(""),
            Some(value) => value.as_str(),
        };
        let bytes = |name: &str| fields.get(name).and_then(Value::as_str).and_then(|text| BASE64.decode(text).ok());
        let (kid, name) = (text("kid")?.to_owned(), text("alg")?);
        let algorithm = match name {
            "" => None,
            name => Some(Algorithm::parse(name)?),
        };
        let is_one_of = |prefixes: &[&str]| name.is_empty() || prefixes.iter().any(|prefix| name.starts_with(prefix));
        let key = match text("kty")? {
            "RSA" if is_one_of(&["RS", "PS"]) => Key::Rsa { n: bytes("n")?, e: bytes("e")? },
            "EC" if is_one_of(&["ES"]) => {
                let (own, size): (_, usize) = match text("crv")? {
                    "P-256" | "" => (Algorithm::Es256, 32),
                    "P-384" => (Algorithm::Es384, 48),
                    "P-521" => (Algorithm::Es512, 66),
                    _ => return None,
                };
                if algorithm.is_some_and(|algorithm| algorithm != own) {
                    return None;
                }
                let mut point = vec![4];
                for coordinate in [bytes("x")?, bytes("y")?] {
                    point.resize(point.len() + size.checked_sub(coordinate.len())?, 0);
                    point.extend(coordinate);
                }
                let parsed = match own {
                    Algorithm::Es256 => ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point),
                    Algorithm::Es384 => ParsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point),
                    _ => ParsedPublicKey::new(&ECDSA_P521_SHA512_FIXED, point),
                };
                Key::Point(own, parsed.ok()?)
            }
            "OKP" if is_one_of(&["EdDSA"]) && text("crv")? == "Ed25519" => {
                Key::Point(Algorithm::EdDsa, ParsedPublicKey::new(&ED25519, bytes("x")?).ok()?)
            }
            "oct" if is_one_of(&["HS"]) => Key::Secret(bytes("k")?),
            _ => return None,
        };
        Some(Self { kid, algorithm, key })
    }
}

impl Key {
    fn signed(&self, token: &Token) -> bool {
        let (message, signature) = (token.signed.as_bytes(), &token.signature[..]);
        match self {
            Self::Rsa { n, e } => rsa(token.algorithm).is_some_and(|parameters| {
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signature).is_ok()
            }),
            Self::Point(algorithm, key) => *algorithm == token.algorithm && key.verify_sig(message, signature).is_ok(),
            Self::Secret(secret) => {
                let algorithm = match token.algorithm {
                    Algorithm::Hs256 => hmac::HMAC_SHA256,
                    Algorithm::Hs384 => hmac::HMAC_SHA384,
                    Algorithm::Hs512 => hmac::HMAC_SHA512,
                    _ => return false,
                };
                hmac::verify(&hmac::Key::new(algorithm, secret), message, signature).is_ok()
            }
        }
    }
}

fn rsa(algorithm: Algorithm) -> Option<&'static RsaParameters> {
    Some(match algorithm {
        Algorithm::Rs256 => &RSA_PKCS1_2048_8192_SHA256,
        Algorithm::Rs384 => &RSA_PKCS1_2048_8192_SHA384,
        Algorithm::Rs512 => &RSA_PKCS1_2048_8192_SHA512,
        Algorithm::Ps256 => &RSA_PSS_2048_8192_SHA256,
        Algorithm::Ps384 => &RSA_PSS_2048_8192_SHA384,
        Algorithm::Ps512 => &RSA_PSS_2048_8192_SHA512,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(algorithm: &str, secret: &[u8]) -> Token {
        let signed = format!("{}.{}", BASE64.encode(format!(r#"{{"alg":"{algorithm}"}}"#)), BASE64.encode("{}"));
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes());
        Token::parse(&format!("{signed}.{}", BASE64.encode(tag.as_ref()))).expect("a token")
    }

    #[test]
    fn a_public_key_is_no_secret() {
        let n = BASE64.encode([0xc1; 256]);
        let rsa = format!(r#"{{"kty":"RSA","n":"{n}","e":"AQAB"}}"#);
        let keys = Jwks::parse(format!(r#"{{"keys":[{rsa}]}}"#).as_bytes()).expect("a key");
        assert_eq!(keys.verify(&token("HS256", &[0xc1; 256])), Err(VERIFICATION));
        let secret = Jwks::parse(br#"{"keys":[{"kty":"zz"},{"kty":"oct","k":"c2VjcmV0"}]}"#).expect("a key");
        assert_eq!(secret.verify(&token("HS256", b"secret")), Ok(()));
        assert_eq!(secret.verify(&token("HS256", b"other")), Err(VERIFICATION));
        assert_eq!(secret.verify(&token("ES256", b"secret")), Err(VERIFICATION));
        let named = Jwks::parse(br#"{"keys":[{"kty":"oct","alg":"HS512","k":"c2VjcmV0"}]}"#).expect("a key");
        assert_eq!(named.verify(&token("HS256", b"secret")), Err(NO_KEY));
        for bad in
            ["", "{}", r#"{"keys":1}"#, r#"{"keys":[]}"#, r#"{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]}"#]
        {
            assert!(Jwks::parse(bad.as_bytes()).is_none(), "{bad}");
        }
    }
}
