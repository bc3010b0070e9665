//! Secrets as they were sent: the files that they point to are taken into them, and what may be shown of them.
//!
//! Called by the proxy's store of secrets. Invariant: after [`take_in_files`] all parts of a secret are of one moment, whatever
//! becomes of the files; what [`shown`] gives holds nothing that is secret.

use crate::{
    Context,
    data_source::{INLINE, cannot_be_read, is_name, is_no_pem},
};
use std::{borrow::Cow, path::Path};
use weft_control_api::{
    Message as _, Problem,
    envoy::{
        config::core::v3::{DataSource, data_source::Specifier},
        extensions::transport_sockets::tls::v3::{GenericSecret, Secret, secret},
    },
    pem::{self, CERTIFICATE, CRL},
};

/// The files that a secret points to.
#[derive(Debug, Default)]
pub struct Files {
    /// A move in one of these means that the secret has to be read again; none if it points to no files.
    pub directories: Vec<String>,
    /// By the field that points to it.
    names: Vec<(&'static str, String)>,
}

impl Files {
    /// Problems say of which file they are, though what was in it stands in the secret itself by now.
    pub fn name_in(&self, problems: &mut [Problem]) {
        for problem in problems {
            let field = problem.path.rsplit('.').next().unwrap_or_default();
            if let Some((_, file)) = self.names.iter().find(|(of, _)| *of == field) {
                problem.message = problem.message.replacen(INLINE, file, 1);
            }
        }
    }
}

/// Puts the content of the files in place of their names.
pub fn take_in_files(secret: &mut Secret, cx: &mut Context) -> Files {
    let mut files = Files::default();
    let watched = match &mut secret.r#type {
        Some(secret::Type::TlsCertificate(p)) => cx.field("tls_certificate", |cx| {
            take_in("certificate_chain", &mut p.certificate_chain, is_no_pem, &mut files, cx);
            take_in("private_key", &mut p.private_key, is_name, &mut files, cx);
            take_in("password", &mut p.password, is_name, &mut files, cx);
            take_in("ocsp_staple", &mut p.ocsp_staple, is_no_pem, &mut files, cx);
            p.watched_directory.as_ref()
        }),
        Some(secret::Type::ValidationContext(p)) => cx.field("validation_context", |cx| {
            take_in("trusted_ca", &mut p.trusted_ca, is_no_pem, &mut files, cx);
            take_in("crl", &mut p.crl, is_no_pem, &mut files, cx);
            p.watched_directory.as_ref()
        }),
        _ => None,
    };
    let directories = &mut files.directories;
    if let (Some(watched), false) = (watched, directories.is_empty()) {
        *directories = vec![watched.path.clone()];
    }
    directories.sort();
    directories.dedup();
    files
}

fn take_in(
    name: &'static str,
    source: &mut Option<DataSource>,
    may_be_shown: fn(&str) -> bool,
    files: &mut Files,
    cx: &mut Context,
) {
    let Some(DataSource { specifier: Some(specifier), .. }) = source else { return };
    let Specifier::Filename(file) = &*specifier else { return };
    let data = match std::fs::read(file) {
        Ok(data) => {
            let parent = Path::new(file).parent().filter(|parent| !parent.as_os_str().is_empty());
            files.directories.push(parent.map_or_else(|| ".".into(), |parent| parent.to_string_lossy().into_owned()));
            files.names.push((name, file.clone()));
            data
        }
        Err(e) => {
            let shown = if may_be_shown(file) { format!("{file:?}") } else { format!("a text, {HIDDEN}") };
            cx.field(name, |cx| cx.problem_at("filename", cannot_be_read(&shown, &e)));
            // It is not looked for again.
            Vec::new()
        }
    };
    *specifier = Specifier::InlineBytes(data);
}

/// The encoded secret, with `[redacted]` in place of what nobody may see.
pub fn shown(mut secret: Secret) -> Vec<u8> {
    match &mut secret.r#type {
        Some(secret::Type::TlsCertificate(p)) => {
            [&mut p.private_key, &mut p.password, &mut p.pkcs12].into_iter().flatten().for_each(redact);
            // A file may hold a certificate and its key; and what is meant for one field may stand in another.
            p.certificate_chain.iter_mut().for_each(|p| keep_only(p, &[CERTIFICATE]));
        }
        Some(secret::Type::SessionTicketKeys(p)) => p.keys.iter_mut().for_each(redact),
        Some(secret::Type::GenericSecret(p)) => {
            let GenericSecret { secret, secrets } = p;
            secret.iter_mut().chain(secrets.values_mut()).for_each(redact);
        }
        Some(secret::Type::ValidationContext(p)) => {
            p.trusted_ca.iter_mut().for_each(|p| keep_only(p, &[CERTIFICATE, CRL]));
            p.crl.iter_mut().for_each(|p| keep_only(p, &[CERTIFICATE, CRL]));
        }
        None => {}
    }
    secret.encode_to_vec()
}

/// Leaves the PEM blocks of these labels in what stands here itself.
fn keep_only(source: &mut DataSource, labels: &[&str]) {
    match &mut source.specifier {
        Some(Specifier::InlineBytes(bytes)) => {
            if let Cow::Owned(shown) = pem::only(bytes, labels) {
                zeroize::Zeroize::zeroize(bytes);
                *bytes = shown;
            }
        }
        Some(Specifier::InlineString(text)) => {
            if let Cow::Owned(shown) = pem::only(text.as_bytes(), labels) {
                zeroize::Zeroize::zeroize(text);
                *text = String::from_utf8(shown).unwrap_or_default();
            }
        }
        // A name that is none is a problem, and shows there.
        Some(Specifier::Filename(text) | Specifier::EnvironmentVariable(text)) if text.contains("-----") => {
            zeroize::Zeroize::zeroize(text);
            *text = HIDDEN.into();
        }
        Some(Specifier::Filename(_) | Specifier::EnvironmentVariable(_)) | None => {}
    }
}

const HIDDEN: &str = "[redacted]";

fn redact(source: &mut DataSource) {
    match &mut source.specifier {
        Some(Specifier::InlineBytes(bytes)) => {
            zeroize::Zeroize::zeroize(bytes);
            *bytes = HIDDEN.into();
        }
        Some(Specifier::InlineString(text)) => {
            zeroize::Zeroize::zeroize(text);
            *text = HIDDEN.into();
        }
        Some(Specifier::Filename(text) | Specifier::EnvironmentVariable(text)) => *text = HIDDEN.into(),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_control_api::envoy::extensions::transport_sockets::tls::v3::{
        CertificateValidationContext, TlsCertificate,
    };

    const CERT: &str = "-----BEGIN CERTIFICATE-----\nMIIBpublic\n-----END CERTIFICATE-----\n";
    const LIST: &str = "-----BEGIN X509 CRL-----\nMIIBlist\n-----END X509 CRL-----\n";
    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMIGHsecret\n-----END PRIVATE KEY-----\n";

    fn has(secret: secret::Type, text: &str) -> bool {
        let shown = shown(Secret { name: "s".into(), r#type: Some(secret) });
        String::from_utf8_lossy(&shown).contains(text)
    }

    fn sources(text: &str) -> [DataSource; 2] {
        [Specifier::InlineString(text.into()), Specifier::InlineBytes(text.into())]
            .map(|specifier| DataSource { specifier: Some(specifier), watched_directory: None })
    }

    #[test]
    fn keys_beside_certificates_are_hidden() {
        for source in sources(&format!("{CERT}{KEY}")) {
            let both = || Some(source.clone());
            let certificate = || {
                let p = TlsCertificate { certificate_chain: both(), private_key: both(), ..Default::default() };
                secret::Type::TlsCertificate(p)
            };
            assert!(has(certificate(), "MIIBpublic") && has(certificate(), "[redacted]"));
            assert!(!has(certificate(), "MIGHsecret"));
            let context = || {
                let p = CertificateValidationContext { trusted_ca: both(), crl: both(), ..Default::default() };
                secret::Type::ValidationContext(p)
            };
            assert!(has(context(), "MIIBpublic") && !has(context(), "MIGHsecret"));
        }
    }

    #[test]
    fn a_file_that_is_missing_is_said_once_and_one_that_is_there_is_named() {
        let file =
            |name: &str| Some(DataSource { specifier: Some(Specifier::Filename(name.into())), ..Default::default() });
        let p = TlsCertificate {
            certificate_chain: file("/dev/null"),
            private_key: file("/no/key.pem"),
            ..Default::default()
        };
        let mut secret = Secret { name: "s".into(), r#type: Some(secret::Type::TlsCertificate(p)) };
        let mut cx = Context::new();
        let files = take_in_files(&mut secret, &mut cx);
        assert_eq!(files.directories, ["/dev"]);
        let read = super::super::Secret::from_proto(secret, &mut cx);
        let problems = cx.finish(read).expect_err("a file is missing");
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].path.ends_with("private_key.filename"), "{problems:?}");
        let mut problems = [Problem::new("secret \"s\".certificate_chain", "from <inline>: empty")];
        files.name_in(&mut problems);
        assert_eq!(problems[0].message, "from /dev/null: empty");
    }

    #[test]
    fn what_is_public_is_shown_as_it_is() {
        for source in sources(&format!("{CERT}\n{CERT}{LIST}")) {
            let p = CertificateValidationContext { trusted_ca: Some(source.clone()), ..Default::default() };
            assert!(has(secret::Type::ValidationContext(p), &format!("{CERT}\n{CERT}{LIST}")));
            let p = TlsCertificate { certificate_chain: Some(source), ..Default::default() };
            assert!(!has(secret::Type::TlsCertificate(p), "MIIBlist"), "no list belongs into a chain");
        }
    }
}
