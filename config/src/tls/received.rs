//! Secrets as they were sent: the files that they point to are taken into them, and what may be shown of them.
//!
//! Called by the proxy's store of secrets. Invariant: after [`take_in_files`] all parts of a secret are of one moment, whatever
//! becomes of the files; what [`shown`] gives holds nothing that is secret.

use crate::Context;
use std::path::Path;
use weft_control_api::{
    Message as _,
    envoy::{
        config::core::v3::{DataSource, data_source::Specifier},
        extensions::transport_sockets::tls::v3::{GenericSecret, Secret, secret},
    },
};

/// Puts the content of the files in place of their names. Gives the directories in which a move means that the secret has
/// to be read again; none if it points to no files.
pub fn take_in_files(secret: &mut Secret, cx: &mut Context) -> Vec<String> {
    let mut directories = Vec::new();
    let watched = match &mut secret.r#type {
        Some(secret::Type::TlsCertificate(p)) => cx.field("tls_certificate", |cx| {
            take_in("certificate_chain", &mut p.certificate_chain, &mut directories, cx);
            take_in("private_key", &mut p.private_key, &mut directories, cx);
            take_in("password", &mut p.password, &mut directories, cx);
            take_in("ocsp_staple", &mut p.ocsp_staple, &mut directories, cx);
            p.watched_directory.as_ref()
        }),
        Some(secret::Type::ValidationContext(p)) => cx.field("validation_context", |cx| {
            take_in("trusted_ca", &mut p.trusted_ca, &mut directories, cx);
            take_in("crl", &mut p.crl, &mut directories, cx);
            p.watched_directory.as_ref()
        }),
        _ => None,
    };
    if let (Some(watched), false) = (watched, directories.is_empty()) {
        directories = vec![watched.path.clone()];
    }
    directories.sort();
    directories.dedup();
    directories
}

fn take_in(name: &str, source: &mut Option<DataSource>, directories: &mut Vec<String>, cx: &mut Context) {
    let Some(DataSource { specifier: Some(specifier), .. }) = source else { return };
    let Specifier::Filename(file) = &*specifier else { return };
    match std::fs::read(file) {
        Ok(data) => {
            let parent = Path::new(file).parent().filter(|parent| !parent.as_os_str().is_empty());
            directories.push(parent.map_or_else(|| ".".into(), |parent| parent.to_string_lossy().into_owned()));
            *specifier = Specifier::InlineBytes(data);
        }
        Err(e) => cx.field(name, |cx| cx.problem_at("filename", format!("found {file:?}, which cannot be read: {e}"))),
    }
}

/// The encoded secret, with `[redacted]` in place of what nobody may see.
pub fn shown(mut secret: Secret) -> Vec<u8> {
    match &mut secret.r#type {
        Some(secret::Type::TlsCertificate(p)) => {
            [&mut p.private_key, &mut p.password, &mut p.pkcs12].into_iter().flatten().for_each(redact);
        }
        Some(secret::Type::SessionTicketKeys(p)) => p.keys.iter_mut().for_each(redact),
        Some(secret::Type::GenericSecret(p)) => {
            let GenericSecret { secret, secrets } = p;
            secret.iter_mut().chain(secrets.values_mut()).for_each(redact);
        }
        Some(secret::Type::ValidationContext(_)) | None => {}
    }
    secret.encode_to_vec()
}

fn redact(source: &mut DataSource) {
    let hidden = "[redacted]";
    match &mut source.specifier {
        Some(Specifier::InlineBytes(bytes)) => {
            zeroize::Zeroize::zeroize(bytes);
            *bytes = hidden.into();
        }
        Some(Specifier::InlineString(text)) => {
            zeroize::Zeroize::zeroize(text);
            *text = hidden.into();
        }
        Some(Specifier::Filename(text) | Specifier::EnvironmentVariable(text)) => *text = hidden.into(),
        None => {}
    }
}
