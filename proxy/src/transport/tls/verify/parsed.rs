//! One certificate, taken apart for verification: what paths are built and checked with.
//!
//! Made of anchors when a context is compiled, and of what a peer presents at its handshake. It owns what it holds, so that
//! anchors can stay.
//!
//! Invariant: what stands here was well-formed; a certificate with a malformed part that matters is refused when it is read.

use super::{constraints::Constraints, der};
use std::{fmt, net::IpAddr};
use x509_parser::{
    extensions::{GeneralName, ParsedExtension},
    prelude::{FromDer, X509Certificate, X509Version},
    public_key::PublicKey,
};

/// Key usages by their bit in the extension.
pub const DIGITAL_SIGNATURE: u16 = 1;
pub const KEY_ENCIPHERMENT: u16 = 1 << 2;
pub const KEY_AGREEMENT: u16 = 1 << 4;
pub const KEY_CERT_SIGN: u16 = 1 << 5;
pub const CRL_SIGN: u16 = 1 << 6;

/// A certificate's parts.
#[derive(Debug)]
pub struct Parsed {
    pub der: Box<[u8]>,
    pub signed: Signed,
    pub serial: Box<[u8]>,
    /// Names as they are encoded.
    pub issuer: Box<[u8]>,
    pub subject: Box<[u8]>,
    pub key: PublicKeyInfo,
    /// Seconds since the epoch.
    pub not_before: i64,
    /// Seconds since the epoch.
    pub not_after: i64,
    pub is_v1: bool,
    pub basic_constraints: Option<BasicConstraints>,
    pub key_usage: Option<u16>,
    pub extended_key_usage: Option<ExtendedKeyUsage>,
    pub subject_key_id: Option<Box<[u8]>>,
    pub authority_key_id: Option<Box<[u8]>>,
    pub names: Vec<Name>,
    pub constraints: Option<Constraints>,
    /// It has a critical extension that is not understood here.
    pub has_unknown_critical: bool,
}

/// Something with its issuer's signature.
#[derive(Debug)]
pub struct Signed {
    pub message: Box<[u8]>,
    /// The algorithm as it is encoded, without its outermost tag.
    pub algorithm: Box<[u8]>,
    pub signature: Box<[u8]>,
}

/// A public key.
#[derive(Debug)]
pub struct PublicKeyInfo {
    /// The whole, as pins take it.
    pub der: Box<[u8]>,
    /// The algorithm as it is encoded, without its outermost tag.
    pub algorithm: Box<[u8]>,
    pub key: Box<[u8]>,
    /// Of RSA keys.
    pub rsa_bits: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
pub struct BasicConstraints {
    pub is_ca: bool,
    pub path_len: Option<u32>,
}

#[derive(Clone, Copy, Debug)]
pub struct ExtendedKeyUsage {
    pub client: bool,
    pub server: bool,
}

/// A subject alternative name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    Dns(Box<str>),
    Uri(Box<str>),
    Email(Box<str>),
    Ip(IpAddr),
    /// OID and value.
    Other(Box<str>, Box<[u8]>),
    /// Encoded.
    Directory(Box<[u8]>),
    /// One that cannot be read, or of a kind that nothing matches. URIs that cannot be read are [`Name::BadUri`].
    Unknown,
    BadUri,
}

impl Signed {
    /// Takes apart what is signed as certificates and CRLs are: message, algorithm, signature.
    pub fn parse(whole: &[u8]) -> Option<Self> {
        let (outer, rest) = der::expect(whole, der::SEQUENCE)?;
        if !rest.is_empty() {
            return None;
        }
        let (message, rest) = der::element(outer)?;
        let (algorithm, rest) = der::expect(rest, der::SEQUENCE)?;
        let (signature, rest) = der::bits(rest)?;
        let parsed = Self { message: message.into(), algorithm: algorithm.into(), signature: signature.into() };
        rest.is_empty().then_some(parsed)
    }
}

impl Parsed {
    /// Reads a DER certificate.
    ///
    /// # Errors
    /// Which part of it cannot be read.
    pub fn parse(whole: &[u8]) -> Result<Self, &'static str> {
        let (rest, x509) = X509Certificate::from_der(whole).map_err(|_| "is no X.509 certificate")?;
        if !rest.is_empty() {
            return Err("has bytes after its end");
        }
        let raw = Raw::parse(whole).ok_or("is no X.509 certificate")?;
        let rsa_bits = match x509.public_key().parsed() {
            Ok(PublicKey::RSA(key)) => Some(key.key_size()),
            Ok(_) => None,
            Err(_) => return Err("has a public key that cannot be read"),
        };
        let mut this = Self {
            der: whole.into(),
            signed: raw.signed,
            serial: x509.raw_serial().into(),
            issuer: raw.issuer.into(),
            subject: raw.subject.into(),
            key: PublicKeyInfo {
                der: raw.key_info.into(),
                algorithm: raw.key_algorithm.into(),
                key: raw.key.into(),
                rsa_bits,
            },
            not_before: x509.validity().not_before.timestamp(),
            not_after: x509.validity().not_after.timestamp(),
            is_v1: x509.version() == X509Version::V1,
            basic_constraints: None,
            key_usage: None,
            extended_key_usage: None,
            subject_key_id: None,
            authority_key_id: None,
            names: Vec::new(),
            constraints: None,
            has_unknown_critical: false,
        };
        for (i, extension) in x509.extensions().iter().enumerate() {
            if x509.extensions().iter().take(i).any(|earlier| earlier.oid == extension.oid) {
                return Err("has an extension twice");
            }
            this.take(extension.parsed_extension(), extension.critical)?;
        }
        Ok(this)
    }

    fn take(&mut self, extension: &ParsedExtension<'_>, critical: bool) -> Result<(), &'static str> {
        match extension {
            ParsedExtension::BasicConstraints(found) => {
                self.basic_constraints =
                    Some(BasicConstraints { is_ca: found.ca, path_len: found.path_len_constraint });
            }
            ParsedExtension::KeyUsage(found) => self.key_usage = Some(found.flags),
            ParsedExtension::ExtendedKeyUsage(found) => {
                self.extended_key_usage =
                    Some(ExtendedKeyUsage { client: found.client_auth, server: found.server_auth });
            }
            ParsedExtension::SubjectKeyIdentifier(id) => self.subject_key_id = Some(id.0.into()),
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                self.authority_key_id = id.key_identifier.as_ref().map(|id| id.0.into());
            }
            ParsedExtension::SubjectAlternativeName(names) => {
                self.names = names.general_names.iter().map(Name::new).collect();
            }
            ParsedExtension::NameConstraints(found) => self.constraints = Some(Constraints::new(found)),
            // Policies ask for nothing unless something requires one.
            ParsedExtension::CertificatePolicies(_) | ParsedExtension::NSCertType(_) => {}
            ParsedExtension::ParseError { .. } => return Err("has an extension that cannot be read"),
            _ => self.has_unknown_critical |= critical,
        }
        Ok(())
    }

    /// True if it names itself as its issuer.
    pub fn is_self_issued(&self) -> bool {
        self.subject == self.issuer
    }

    /// True if it seems to be signed with its own key, which may sign certificates.
    pub fn is_self_signed(&self) -> bool {
        self.is_self_issued() && self.may_be_issued_by(self) && self.may_be_used_to(KEY_CERT_SIGN)
    }

    /// True if names and key ids say that `issuer` issued it.
    pub fn may_be_issued_by(&self, issuer: &Self) -> bool {
        let ids_match = match (&self.authority_key_id, &issuer.subject_key_id) {
            (Some(wanted), Some(found)) => wanted == found,
            _ => true,
        };
        self.issuer == issuer.subject && ids_match
    }

    /// True if its key usage, where it has one, has any of `bits`.
    pub fn may_be_used_to(&self, bits: u16) -> bool {
        self.key_usage.is_none_or(|usage| usage & bits != 0)
    }

    /// True if it may issue certificates.
    pub fn is_ca(&self) -> bool {
        let constraints_say = match self.basic_constraints {
            Some(constraints) => constraints.is_ca,
            // Roots older than extensions.
            None => self.is_v1 && self.is_self_issued(),
        };
        constraints_say && self.may_be_used_to(KEY_CERT_SIGN)
    }
}

/// A certificate's parts where they stand.
struct Raw<'a> {
    signed: Signed,
    issuer: &'a [u8],
    subject: &'a [u8],
    key_info: &'a [u8],
    key_algorithm: &'a [u8],
    key: &'a [u8],
}

impl<'a> Raw<'a> {
    fn parse(whole: &'a [u8]) -> Option<Self> {
        let signed = Signed::parse(whole)?;
        let (outer, _) = der::expect(whole, der::SEQUENCE)?;
        let (fields, _) = der::expect(outer, der::SEQUENCE)?;
        let fields = match der::expect(fields, der::CONTEXT_0) {
            Some((_, rest)) => rest,
            None => fields,
        };
        let (_, fields) = der::expect(fields, der::INTEGER)?;
        let (algorithm, fields) = der::expect(fields, der::SEQUENCE)?;
        let (issuer, fields) = der::element(fields)?;
        let (_, fields) = der::expect(fields, der::SEQUENCE)?;
        let (subject, fields) = der::element(fields)?;
        let (key_info, _) = der::element(fields)?;
        let (key_fields, _) = der::expect(key_info, der::SEQUENCE)?;
        let (key_algorithm, rest) = der::expect(key_fields, der::SEQUENCE)?;
        let (key, _) = der::bits(rest)?;
        // Both places must name one algorithm (RFC 5280, 4.1.1.2).
        (algorithm == &*signed.algorithm).then_some(Self { signed, issuer, subject, key_info, key_algorithm, key })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(text) | Self::Uri(text) | Self::Email(text) => f.write_str(text),
            Self::Ip(ip) => ip.fmt(f),
            Self::Other(..) | Self::Directory(_) | Self::Unknown | Self::BadUri => Ok(()),
        }
    }
}

impl Name {
    fn new(name: &GeneralName<'_>) -> Self {
        match name {
            GeneralName::DNSName(name) => Self::Dns((*name).into()),
            GeneralName::URI(uri) => Self::Uri((*uri).into()),
            GeneralName::RFC822Name(email) => Self::Email((*email).into()),
            GeneralName::IPAddress(octets) => ip(octets).map_or(Self::Unknown, Self::Ip),
            GeneralName::OtherName(oid, value) => Self::Other(oid.to_id_string().into(), (*value).into()),
            GeneralName::DirectoryName(name) => Self::Directory(name.as_raw().into()),
            GeneralName::Invalid(tag, _) if tag.0 == 6 => Self::BadUri,
            _ => Self::Unknown,
        }
    }

    /// True for URIs, readable or not.
    pub fn is_uri(&self) -> bool {
        matches!(self, Self::Uri(_) | Self::BadUri)
    }
}

fn ip(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).ok().map(IpAddr::from);
    v4.or_else(|| <[u8; 16]>::try_from(octets).ok().map(IpAddr::from))
}
