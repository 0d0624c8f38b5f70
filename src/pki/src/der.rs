//! Just enough DER to give a certificate or request a subject with several
//! organizations.
//!
//! The certificate library keeps one value for each attribute type, while
//! Kubernetes reads every `O=` as a group. So certificates and requests are
//! made with a stand-in subject, and then the subject is exchanged and the
//! result signed again:
//!
//! ```text
//! SEQUENCE { SEQUENCE { .. subject .. }, algorithm, BIT STRING signature }
//! ```

use rcgen::SigningKey;

use crate::error::PkiError;
use crate::identity::Identity;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OID: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const BIT_STRING: u8 = 0x03;
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];
const ORGANIZATION: [u8; 3] = [0x55, 0x04, 0x0a];

/// A value with its tag and length.
pub(crate) fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let length = content.len();
    if length < 0x80 {
        out.push(length as u8);
    } else {
        let bytes = length.to_be_bytes();
        let used = &bytes[bytes.iter().take_while(|b| **b == 0).count()..];
        out.push(0x80 | used.len() as u8);
        out.extend_from_slice(used);
    }
    out.extend_from_slice(content);
    out
}

/// Splits off the first element: its content, all of it, and what follows.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let first = *bytes.get(1)? as usize;
    let (start, length) = if first < 0x80 {
        (2, first)
    } else {
        let digits = bytes.get(2..2 + (first & 0x7f))?;
        if digits.is_empty() || digits.len() > 4 {
            return None;
        }
        (
            2 + digits.len(),
            digits.iter().fold(0, |n, b| n << 8 | usize::from(*b)),
        )
    };
    let end = start.checked_add(length)?;
    Some((bytes.get(start..end)?, bytes.get(..end)?, bytes.get(end..)?))
}

/// The identity as a distinguished name: every organization, then the common name.
pub(crate) fn subject(identity: &Identity) -> Vec<u8> {
    let attribute = |oid: [u8; 3], value: &str| {
        let pair = [element(OID, &oid), element(UTF8_STRING, value.as_bytes())].concat();
        element(SET, &element(SEQUENCE, &pair))
    };
    let mut names = Vec::new();
    for organization in &identity.organizations {
        names.extend(attribute(ORGANIZATION, organization));
    }
    names.extend(attribute(COMMON_NAME, &identity.common_name));
    element(SEQUENCE, &names)
}

/// Exchanges the bytes of `old` (a part of the signed content of `der`) for
/// `new` and signs again.
pub(crate) fn resign(der: &[u8], old: &[u8], new: &[u8], key: &impl SigningKey) -> Result<Vec<u8>, PkiError> {
    let malformed = || PkiError::malformed("certificate", "not the expected structure");
    let (outer, _, _) = split(der).ok_or_else(malformed)?;
    let (content, whole, rest) = split(outer).ok_or_else(malformed)?;
    let (_, algorithm, _) = split(rest).ok_or_else(malformed)?;
    let offset = (old.as_ptr() as usize)
        .checked_sub(content.as_ptr() as usize)
        .ok_or_else(malformed)?;
    let (before, tail) = content.split_at_checked(offset).ok_or_else(malformed)?;
    let after = tail.strip_prefix(old).ok_or_else(malformed)?;
    let signed = element(whole[0], &[before, new, after].concat());
    let signature = key
        .sign(&signed)
        .map_err(PkiError::crypto("sign a certificate"))?;
    let signature = element(BIT_STRING, &[&[0], &signature[..]].concat());
    Ok(element(SEQUENCE, &[&signed[..], algorithm, &signature].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_every_size() {
        for length in [0, 1, 127, 128, 255, 256, 65_535, 65_536, 100_000] {
            let content = vec![7; length];
            let bytes = [element(SEQUENCE, &content), vec![1, 2]].concat();
            let (got, whole, rest) = split(&bytes).unwrap();
            assert_eq!(
                (got, whole.len() + 2, rest),
                (&content[..], bytes.len(), &[1_u8, 2][..])
            );
        }
        for bad in [
            &[0x30][..],
            &[0x30, 5, 1],
            &[0x30, 0x80],
            &[0x30, 0x85, 1, 1, 1, 1, 1],
            &[0x30, 0x84, 255, 255, 255, 255],
        ] {
            assert!(split(bad).is_none());
        }
    }
}
