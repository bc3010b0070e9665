//! A JSON Web Token taken apart (RFC 7519), as strictly as Envoy does it and in its words.

use base64::{
    Engine,
    alphabet::URL_SAFE,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde_json::{Map, Value};
use std::time::Duration;

/// Why a token does not do; the text goes to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure(pub &'static str);

pub const MISSING: Failure = Failure("Jwt is missing");
pub const EXPIRED: Failure = Failure("Jwt is expired");
pub const NOT_YET_VALID: Failure = Failure("Jwt not yet valid");
pub const UNKNOWN_ISSUER: Failure = Failure("Jwt issuer is not configured");
pub const AUDIENCE: Failure = Failure("Audiences in Jwt are not allowed");
pub const VERIFICATION: Failure = Failure("Jwt verification fails");
pub const NO_KEY: Failure = Failure("Jwks doesn't have key to match kid or alg from Jwt");
pub const NO_VALID_KEYS: Failure = Failure("Jwks doesn't have any valid public key");
pub const FETCH: Failure = Failure("Jwks remote fetch is failed");

const FORM: Failure = Failure("Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections");

/// Base64url; padding may be there.
pub const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_encode_padding(false).with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A signature's algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Es512,
    Hs256,
    Hs384,
    Hs512,
    EdDsa,
}

impl Algorithm {
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "ES512" => Self::Es512,
            "HS256" => Self::Hs256,
            "HS384" => Self::Hs384,
            "HS512" => Self::Hs512,
            "EdDSA" => Self::EdDsa,
            _ => return None,
        })
    }
}

/// A token; nothing of it is verified.
#[derive(Debug)]
pub struct Token {
    pub algorithm: Algorithm,
    /// Empty: none.
    pub kid: String,
    pub header: Map<String, Value>,
    pub payload: Map<String, Value>,
    /// As it was sent.
    pub payload_text: String,
    pub issuer: String,
    pub subject: String,
    pub audiences: Vec<String>,
    not_before: u64,
    /// 0: none.
    pub expires: u64,
    pub signature: Vec<u8>,
    /// Header and payload, as they were signed.
    pub signed: String,
}

impl Token {
    /// Takes a token apart.
    ///
    /// # Errors
    /// Something of it is not as it has to be.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let mut parts = text.split('.');
        let (Some(head), Some(body), Some(tail), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(FORM);
        };
        if head.is_empty() || body.is_empty() || tail.is_empty() {
            return Err(FORM);
        }
        let bytes = BASE64.decode(head).map_err(|_| Failure("Jwt header is an invalid Base64url encoded"))?;
        let header: Map<String, Value> =
            serde_json::from_slice(&bytes).map_err(|_| Failure("Jwt header is an invalid JSON"))?;
        let name = header.get("alg").and_then(Value::as_str);
        let name = name.ok_or(Failure("Jwt header [alg] field is required and must be a string"))?;
        let algorithm = Algorithm::parse(name).ok_or(Failure("Jwt header [alg] is not supported"))?;
        let kid = text_of(&header, "kid", Failure("Jwt header [kid] field is not a string"))?;

        let bytes = BASE64.decode(body).map_err(|_| Failure("Jwt payload is an invalid Base64url encoded"))?;
        let payload: Map<String, Value> =
            serde_json::from_slice(&bytes).map_err(|_| Failure("Jwt payload is an invalid JSON"))?;
        let issuer = text_of(&payload, "iss", Failure("Jwt payload [iss] field is not a string"))?;
        let subject = text_of(&payload, "sub", Failure("Jwt payload [sub] field is not a string"))?;
        let times = [
            (
                "iat",
                "Jwt payload [iat] field is not an integer",
                "Jwt payload [iat] field is not a positive 64 bit integer",
            ),
            (
                "nbf",
                "Jwt payload [nbf] field is not an integer",
                "Jwt payload [nbf] field is not a positive 64 bit integer",
            ),
            (
                "exp",
                "Jwt payload [exp] field is not an integer",
                "Jwt payload [exp] field is not a positive 64 bit integer",
            ),
        ];
        let [_, not_before, expires] =
            times.map(|(name, kind, range)| time_of(&payload, name, Failure(kind), Failure(range)));
        let (not_before, expires) = (not_before?, expires?);
        text_of(&payload, "jti", Failure("Jwt payload [jti] field is not a string"))?;
        let no_audience = Failure("Jwt payload [aud] field is not a string or string list");
        let audiences = match payload.get("aud") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::String(one)) => vec![one.clone()],
            Some(Value::Array(all)) => {
                let all: Option<Vec<_>> = all.iter().map(|one| one.as_str().map(str::to_owned)).collect();
                all.ok_or(no_audience)?
            }
            Some(_) => return Err(no_audience),
        };
        let signature = BASE64.decode(tail).map_err(|_| Failure("Jwt signature is an invalid Base64url encoded"))?;
        let signed = text[..head.len() + 1 + body.len()].to_owned();
        Ok(Self {
            algorithm,
            kid,
            header,
            payload,
            payload_text: body.to_owned(),
            issuer,
            subject,
            audiences,
            not_before,
            expires,
            signature,
            signed,
        })
    }

    /// Tests the times at `now`, seconds since 1970.
    ///
    /// # Errors
    /// It is not valid yet or no more.
    pub fn check_time(&self, now: u64, skew: u64) -> Result<(), Failure> {
        if now.saturating_add(skew) < self.not_before {
            return Err(NOT_YET_VALID);
        }
        if self.expires != 0 && now > self.expires.saturating_add(skew) {
            return Err(EXPIRED);
        }
        Ok(())
    }

    /// True if its end is there, where that is required, and not too far away.
    pub fn check_lifetime(&self, now: u64, required: bool, most: Option<Duration>) -> bool {
        if !required && most.is_none() {
            return true;
        }
        self.expires != 0 && most.is_none_or(|most| self.expires.saturating_sub(now) <= most.as_secs())
    }
}

fn text_of(fields: &Map<String, Value>, name: &str, wrong: Failure) -> Result<String, Failure> {
    match fields.get(name) {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(wrong),
    }
}

fn time_of(fields: &Map<String, Value>, name: &str, kind: Failure, range: Failure) -> Result<u64, Failure> {
    match fields.get(name) {
        None => Ok(0),
        Some(Value::Number(n)) => match (n.as_u64(), n.as_f64()) {
            (Some(n), _) => Ok(n),
            (None, Some(n)) if (0.0..1.8e19).contains(&n) => Ok(n as u64),
            _ => Err(range),
        },
        Some(_) => Err(kind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(header: &str, payload: &str) -> Result<Token, Failure> {
        Token::parse(&format!("{}.{}.{}", BASE64.encode(header), BASE64.encode(payload), BASE64.encode("s")))
    }

    #[test]
    fn what_is_no_token_is_said_in_envoys_words() {
        let head = r#"{"alg":"ES256"}"#;
        for (token, want) in [
            (Token::parse("a.b"), FORM.0),
            (Token::parse("a.b."), FORM.0),
            (Token::parse("a.b.c.d"), FORM.0),
            (Token::parse("!.b.c"), "Jwt header is an invalid Base64url encoded"),
            (parse("[]", "{}"), "Jwt header is an invalid JSON"),
            (parse("{}", "{}"), "Jwt header [alg] field is required and must be a string"),
            (parse(r#"{"alg":"none"}"#, "{}"), "Jwt header [alg] is not supported"),
            (parse(r#"{"alg":"ES256","kid":1}"#, "{}"), "Jwt header [kid] field is not a string"),
            (parse(head, "x"), "Jwt payload is an invalid JSON"),
            (parse(head, r#"{"iss":1}"#), "Jwt payload [iss] field is not a string"),
            (parse(head, r#"{"exp":"1"}"#), "Jwt payload [exp] field is not an integer"),
            (parse(head, r#"{"nbf":-1}"#), "Jwt payload [nbf] field is not a positive 64 bit integer"),
            (parse(head, r#"{"aud":[1]}"#), "Jwt payload [aud] field is not a string or string list"),
            (parse(head, &format!("{}1{}", "[".repeat(300), "]".repeat(300))), "Jwt payload is an invalid JSON"),
        ] {
            assert_eq!(token.err().map(|failure| failure.0), Some(want));
        }
    }

    #[test]
    fn times() {
        let token = parse(r#"{"alg":"ES256"}"#, r#"{"nbf":100,"exp":200.5,"aud":"a"}"#).expect("a token");
        assert_eq!(token.audiences, ["a"]);
        for (now, want) in [(39, Err(NOT_YET_VALID)), (40, Ok(())), (260, Ok(())), (261, Err(EXPIRED))] {
            assert_eq!(token.check_time(now, 60), want, "{now}");
        }
        assert!(token.check_lifetime(100, true, Some(Duration::from_secs(100))));
        assert!(!token.check_lifetime(99, true, Some(Duration::from_secs(100))));
    }
}
