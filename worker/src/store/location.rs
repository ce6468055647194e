//! Turns the address a user gives into the kind of store behind it; says what is wrong with one that names none.
//!
//! Paths and prefixes are taken literally: there is no percent-decoding, so what is printed is what was meant.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

use super::check_prefix;

/// Where a store is, checked for form only; whether something is there is for [`super::Store::reach`] to find out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StoreAddress {
    /// `file:///path`
    Directory(PathBuf),
    /// `s3://bucket` or `s3://bucket/prefix`
    S3 {
        bucket: String,
        /// Without slashes at either end; empty for the whole bucket.
        prefix: String,
    },
    /// `gs://bucket` or `gs://bucket/prefix`
    Google {
        bucket: String,
        /// As with S3.
        prefix: String,
    },
    /// `az://container` or `az://container/prefix`; the account has a setting of its own.
    Azure {
        container: String,
        /// As with S3.
        prefix: String,
    },
}

/// Why a text is no store address. Never repeats a text that may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error(
        "no store is given; write file:///path, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"
    )]
    Empty,
    #[error(
        "`{0}` has no scheme; write file:///path, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"
    )]
    NoScheme(String),
    #[error(
        "`{0}://` is not a kind of store; write file:///path, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"
    )]
    UnknownScheme(String),
    #[error("`file://{0}` is not an absolute path; write three slashes, as in file:///path")]
    RelativePath(String),
    #[error("the file system's root cannot be a store; name a directory in it")]
    RootPath,
    #[error("`{0}` in a path is ambiguous; write the path without `.` and `..`")]
    DottedPath(String),
    #[error("`{0}://` is followed by the name of a bucket or container, as in {0}://name/prefix")]
    NoBucket(&'static str),
    #[error("`{bucket}` is not the name of a bucket or container: {fault}")]
    BadBucket { bucket: String, fault: &'static str },
    #[error("the prefix `{prefix}` cannot be used: {fault}")]
    BadPrefix { prefix: String, fault: &'static str },
    #[error("an address has no `{0}`; regions, endpoints and options have settings of their own")]
    Query(char),
    #[error(
        "an address contains no credentials; they come from the environment, a profile or the machine's role"
    )]
    Credentials,
    #[error("an address contains no control characters")]
    ControlCharacter,
}

impl StoreAddress {
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(AddressError::Empty);
        }
        if text.chars().any(char::is_control) {
            return Err(AddressError::ControlCharacter);
        }
        // Asked first: no other message may repeat a password.
        let authority = text
            .split_once("://")
            .map_or(text, |(_, rest)| rest)
            .split('/')
            .next()
            .unwrap_or_default();
        if authority.contains('@') {
            return Err(AddressError::Credentials);
        }
        if let Some(mark) = text.chars().find(|c| matches!(c, '?' | '#')) {
            return Err(AddressError::Query(mark));
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(AddressError::NoScheme(text.to_owned()));
        };
        match scheme {
            "file" => parse_directory(rest),
            "s3" => {
                let (bucket, prefix) = parse_bucket("s3", rest, s3_bucket_fault)?;
                Ok(Self::S3 { bucket, prefix })
            }
            "gs" => {
                let (bucket, prefix) = parse_bucket("gs", rest, google_bucket_fault)?;
                Ok(Self::Google { bucket, prefix })
            }
            "az" => {
                let (container, prefix) = parse_bucket("az", rest, container_fault)?;
                Ok(Self::Azure { container, prefix })
            }
            other => Err(AddressError::UnknownScheme(other.to_owned())),
        }
    }
}

fn parse_directory(rest: &str) -> Result<StoreAddress, AddressError> {
    if !rest.starts_with('/') {
        return Err(AddressError::RelativePath(rest.to_owned()));
    }
    if let Some(dots) = rest
        .split('/')
        .find(|segment| matches!(*segment, "." | ".."))
    {
        return Err(AddressError::DottedPath(dots.to_owned()));
    }
    match rest.trim_end_matches('/') {
        "" => Err(AddressError::RootPath),
        path => Ok(StoreAddress::Directory(PathBuf::from(path))),
    }
}

/// The name, which has no fault, and the prefix.
fn parse_bucket(
    scheme: &'static str,
    rest: &str,
    fault_of: fn(&str) -> Option<&'static str>,
) -> Result<(String, String), AddressError> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err(AddressError::NoBucket(scheme));
    }
    if let Some(fault) = fault_of(bucket) {
        return Err(AddressError::BadBucket {
            bucket: bucket.to_owned(),
            fault,
        });
    }
    let prefix = prefix.trim_end_matches('/');
    // Leaves room for the keys below it in the 1024 bytes of S3 and its like.
    let fault = if prefix.len() > 255 {
        Some("it is longer than 255 bytes")
    } else {
        check_prefix(prefix).err()
    };
    match fault {
        Some(fault) => Err(AddressError::BadPrefix {
            prefix: prefix.to_owned(),
            fault,
        }),
        None => Ok((bucket.to_owned(), prefix.to_owned())),
    }
}

/// The naming rules of S3 for buckets made since 2018.
fn s3_bucket_fault(bucket: &str) -> Option<&'static str> {
    if bucket.starts_with("arn:") {
        return Some("access points are named by their alias, not by their ARN");
    }
    if let Some(fault) = name_fault(bucket, "-.", 63) {
        return Some(fault);
    }
    if bucket.contains("..") || bucket.parse::<Ipv4Addr>().is_ok() {
        return Some("it contains two dots in a row or is an IP address");
    }
    if bucket.ends_with("--x-s3") {
        return Some(
            "directory buckets list their objects in no order, which this store relies on",
        );
    }
    None
}

/// Google's rules; a name with dots may be longer, as that of a domain.
fn google_bucket_fault(bucket: &str) -> Option<&'static str> {
    let longest = if bucket.contains('.') { 222 } else { 63 };
    match name_fault(bucket, "-._", longest) {
        None if bucket.starts_with("goog") || bucket.parse::<Ipv4Addr>().is_ok() => {
            Some("it starts with `goog` or is an IP address")
        }
        fault => fault,
    }
}

/// Azure's rules.
fn container_fault(container: &str) -> Option<&'static str> {
    match name_fault(container, "-", 63) {
        None if container.contains("--") => Some("it contains two `-` in a row"),
        fault => fault,
    }
}

/// What all of them have in common.
fn name_fault(name: &str, punctuation: &str, longest: usize) -> Option<&'static str> {
    let letter_or_digit = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if name.chars().any(|c| c.is_ascii_uppercase()) {
        return Some("it contains capital letters");
    }
    if !name
        .chars()
        .all(|c| letter_or_digit(c) || punctuation.contains(c))
    {
        return Some(match punctuation {
            "-." => "it contains more than a-z, 0-9, `-` and `.`",
            "-" => "it contains more than a-z, 0-9 and `-`",
            _ => "it contains more than a-z, 0-9, `-`, `_` and `.`",
        });
    }
    if !(3..=longest).contains(&name.len()) {
        return Some(match longest {
            63 => "it is not between 3 and 63 characters long",
            _ => "it is not between 3 and 222 characters long",
        });
    }
    if !name.starts_with(letter_or_digit) || !name.ends_with(letter_or_digit) {
        return Some("it starts or ends with a character that is no letter or digit");
    }
    None
}

impl FromStr for StoreAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        Self::parse(text)
    }
}

impl fmt::Display for StoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, name, prefix) = match self {
            Self::Directory(path) => return write!(f, "file://{}", path.display()),
            Self::S3 { bucket, prefix } => ("s3", bucket, prefix),
            Self::Google { bucket, prefix } => ("gs", bucket, prefix),
            Self::Azure { container, prefix } => ("az", container, prefix),
        };
        match prefix.as_str() {
            "" => write!(f, "{scheme}://{name}"),
            prefix => write!(f, "{scheme}://{name}/{prefix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_printed_as_it_was_given() {
        for text in [
            "file:///srv/snapshots",
            "file:///srv/with space/100%",
            "s3://my.bucket-1",
            "s3://bucket/team/job",
            "gs://my_bucket.example.net/team/job",
            "az://container-1/team/job",
        ] {
            assert_eq!(StoreAddress::parse(text).expect(text).to_string(), text);
        }
        for (text, printed) in [
            ("file:///srv/", "file:///srv"),
            ("s3://bucket/", "s3://bucket"),
            (" s3://bucket/a/ ", "s3://bucket/a"),
        ] {
            assert_eq!(StoreAddress::parse(text).expect(text).to_string(), printed);
        }
    }

    #[test]
    fn each_wrong_address_is_told_what_is_wrong_with_it() {
        use AddressError as E;
        let bucket = |bucket: &str, fault| E::BadBucket {
            bucket: bucket.to_owned(),
            fault,
        };
        for (text, error) in [
            ("", E::Empty),
            ("/srv", E::NoScheme("/srv".into())),
            ("my-bucket", E::NoScheme("my-bucket".into())),
            (
                "https://bucket.s3.amazonaws.com",
                E::UnknownScheme("https".into()),
            ),
            ("S3://bucket", E::UnknownScheme("S3".into())),
            ("file://srv/x", E::RelativePath("srv/x".into())),
            ("file://./x", E::RelativePath("./x".into())),
            ("file:///", E::RootPath),
            ("file:///srv/../etc", E::DottedPath("..".into())),
            ("s3://", E::NoBucket("s3")),
            ("s3:///prefix", E::NoBucket("s3")),
            ("gs://", E::NoBucket("gs")),
            (
                "gs://goog-x",
                bucket("goog-x", "it starts with `goog` or is an IP address"),
            ),
            ("az:///x", E::NoBucket("az")),
            ("az://a--b", bucket("a--b", "it contains two `-` in a row")),
            (
                "az://a.b.c",
                bucket("a.b.c", "it contains more than a-z, 0-9 and `-`"),
            ),
            (
                "s3://MyBucket/x",
                bucket("MyBucket", "it contains capital letters"),
            ),
            (
                "s3://my_bucket",
                bucket("my_bucket", "it contains more than a-z, 0-9, `-` and `.`"),
            ),
            (
                "s3://ab",
                bucket("ab", "it is not between 3 and 63 characters long"),
            ),
            (
                "s3://-abc",
                bucket(
                    "-abc",
                    "it starts or ends with a character that is no letter or digit",
                ),
            ),
            (
                "s3://10.0.0.1/x",
                bucket(
                    "10.0.0.1",
                    "it contains two dots in a row or is an IP address",
                ),
            ),
            (
                "s3://bucket/a//b",
                E::BadPrefix {
                    prefix: "a//b".into(),
                    fault: "it contains an empty segment or starts with `/`",
                },
            ),
            (
                "s3://bucket/../b",
                E::BadPrefix {
                    prefix: "../b".into(),
                    fault: "a segment starts with a dot",
                },
            ),
            ("s3://bucket/x?region=eu-west-1", E::Query('?')),
            ("file:///x#y", E::Query('#')),
            ("s3://bucket/a\nb", E::ControlCharacter),
        ] {
            assert_eq!(StoreAddress::parse(text), Err(error), "{text:?}");
        }
        assert!(matches!(
            StoreAddress::parse("s3://one--use1-az4--x-s3"),
            Err(E::BadBucket { .. })
        ));
    }

    #[test]
    fn a_password_in_an_address_is_refused_and_not_repeated() {
        for text in [
            "s3://KEY:hunter2@bucket/x",
            "https://u:hunter2@host/x",
            "KEY:hunter2@bucket",
            "s3://K:hunter2@b?x=1",
        ] {
            let error = StoreAddress::parse(text).expect_err(text);
            assert_eq!(error, AddressError::Credentials);
            assert!(!format!("{error} {error:?}").contains("hunter2"));
        }
    }
}
