//! The keys of a job: where they come from, which one a stored document is sealed with, and sealing and opening it.
//!
//! ```text
//!  key file, REPRIEVE_KEY ── 32 bytes ──────────────────────────┐
//!                         └─ passphrase ── Argon2id, salt ──────┼─▶ master key ─▶ per job: documents, data keys
//!  KMS key ── GenerateDataKey / Decrypt, wrapped data key ──────┘        │
//!                                  └── in the key document JOB/keys/ID ◀─┘ ID follows from the key
//! ```
//!
//! A document names the master key that it is sealed with by its id, which follows from the key itself. What is needed
//! beside a secret to make the key again (the salt, the wrapped data key) stands in the key document of that id, written
//! before the first document that is sealed with it. Key documents are not secret, and whoever forges one gains nothing: a
//! key that was derived from it and does not have the id is not used, and a data key is only taken from KMS if the KMS
//! key that was set encrypted it for this job.
//!
//! Snapshots are written with the newest key; older keys only open. No key is ever logged or part of an error.

use std::collections::HashMap;
use std::fmt;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use argon2::{Algorithm, Argon2, Params, Version};
use aws_sdk_kms::types::DataKeySpec;
use aws_smithy_types::base64;
use bytes::Bytes;
use reprieve_core::document::{self, DocumentError, Envelope, Stored};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::rand::SecureRandom;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};
use zeroize::Zeroizing;

use crate::store::{Condition, Store, StoreError, StoreErrorKind, retry};

/// The prefix of a job's key documents.
pub const PREFIX: &str = "keys/";

/// A key file is a line; whatever is larger is some other file.
const FILE_LIMIT: u64 = 4096;

/// A shorter passphrase is guessed, however slow each guess is.
const SHORTEST_PASSPHRASE: usize = 8;

/// What a passphrase costs whoever guesses it: OWASP's and the RFC's advice (RFC 9106) within what a small worker has at
/// its start.
const ARGON2_KIB: u32 = 64 * 1024;
const ARGON2_PASSES: u32 = 3;

/// Key documents that ask for less would make guessing cheap, ones that ask for more would take the worker's memory.
const ARGON2_KIB_LIMITS: std::ops::RangeInclusive<u32> = 19 * 1024..=256 * 1024;
const ARGON2_PASSES_LIMITS: std::ops::RangeInclusive<u32> = 2..=16;
const ARGON2_LANES_LIMITS: std::ops::RangeInclusive<u32> = 1..=4;

/// What of KMS's encryption context names the job.
const KMS_CONTEXT: &str = "reprieve-job";

type Bytes32 = Zeroizing<[u8; 32]>;

/// A secret from the environment. It shows itself to nobody.
#[derive(Clone, PartialEq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hidden]")
    }
}

/// Where a key comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    File(PathBuf),
    Environment(Secret),
    /// Id, ARN or alias of a key of KMS.
    Kms(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "the key file {}", path.display()),
            Self::Environment(_) => f.write_str("the secret in REPRIEVE_KEY"),
            Self::Kms(id) => write!(f, "the KMS key {id}"),
        }
    }
}

/// What to do with what is not sealed although a key is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Unsealed {
    #[default]
    Refuse,
    Accept,
}

/// Why a secret cannot be used as a key.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("it cannot be read")]
    Read(#[source] std::io::Error),
    #[error("it has more than {FILE_LIMIT} bytes")]
    TooLarge,
    #[error("it is empty")]
    Empty,
    #[error("as a passphrase it is too short: at least {SHORTEST_PASSPHRASE} bytes are needed")]
    TooShort,
}

/// Why a key is not there. None of it says anything about the snapshot that it is needed for.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("the key document {0} is missing; without it a passphrase or a KMS key opens nothing")]
    NoKeyDocument(String),
    #[error("the key document {key} cannot be used")]
    KeyDocument {
        key: String,
        #[source]
        source: DocumentError,
    },
    #[error("the key document {0} asks for a derivation that is not allowed")]
    Derivation(String),
    #[error("a key document could not be read or written")]
    Store(#[from] StoreError),
    #[error("KMS did not {call} with {key}: {message}")]
    Kms {
        call: &'static str,
        key: String,
        message: String,
    },
    #[error("the kernel gives no random bytes")]
    Random(#[from] std::io::Error),
    #[error("there is no data key for part {part}")]
    NoDataKey { part: String },
    #[error("the data key of attempt {attempt} cannot be unwrapped: it belongs elsewhere")]
    Unwrap { attempt: String },
}

impl KeyError {
    /// Whether what was stored is at fault, and not that a key is missing.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::NoDataKey { .. } | Self::Unwrap { .. })
    }
}

/// Fills with bytes that nobody can guess.
pub(crate) fn random(bytes: &mut [u8]) -> std::io::Result<()> {
    ring::rand::SystemRandom::new()
        .fill(bytes)
        .map_err(|_| std::io::Error::other("the system's generator failed"))
}

/// A key of 32 bytes that everything of a job can be sealed with.
pub struct MasterKey {
    id: String,
    key: Bytes32,
    /// Made from the source that new documents are to be sealed with.
    is_newest: bool,
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MasterKey({})", self.id)
    }
}

/// What the keys below a master key are for, in the words of BLAKE3's key derivation.
mod context {
    pub(super) const ID: &str = "reprieve 2026-11 key id";
    pub(super) const DOCUMENT: &str = "reprieve 2026-11 document encryption";
    pub(super) const PROOF: &str = "reprieve 2026-11 document proof";
    pub(super) const WRAP: &str = "reprieve 2026-11 data key wrapping";
}

/// Eight bytes are enough to tell the keys of one job apart, and what sixteen digits can say.
fn id_of(key: &[u8; 32]) -> String {
    let id = Zeroizing::new(blake3::derive_key(context::ID, key));
    id[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Seals with a key that is used for nothing else, so that the nonce need not differ.
fn once(key: &[u8; 32]) -> (LessSafeKey, Nonce) {
    let key = UnboundKey::new(&AES_256_GCM, key).expect("the length is right");
    let nonce = Nonce::assume_unique_for_key([0; 12]);
    (LessSafeKey::new(key), nonce)
}

impl MasterKey {
    fn new(key: Bytes32, is_newest: bool) -> Self {
        Self {
            id: id_of(&key),
            key,
            is_newest,
        }
    }

    #[cfg(test)]
    pub(crate) fn for_tests(number: u8) -> Self {
        Self::new(Zeroizing::new([number; 32]), true)
    }

    /// Names it; no secret.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A key for one purpose and one place. Parts of a place have no NUL in them.
    fn derive(&self, context: &str, place: &[&[u8]]) -> Bytes32 {
        let root = Zeroizing::new(blake3::derive_key(context, &*self.key));
        let mut hasher = blake3::Hasher::new_keyed(&root);
        for part in place {
            hasher.update(part);
            hasher.update(&[0]);
        }
        Zeroizing::new(*hasher.finalize().as_bytes())
    }

    /// Wraps an attempt's data key. The key that wraps it is used for it alone: an attempt has one data key.
    pub(crate) fn wrap(&self, job: &str, attempt: &str, data_key: &[u8; 32]) -> String {
        let key = self.derive(context::WRAP, &[job.as_bytes(), attempt.as_bytes()]);
        let (aead, nonce) = once(&key);
        let mut bytes = data_key.to_vec();
        aead.seal_in_place_append_tag(nonce, Aad::empty(), &mut bytes)
            .expect("a key is short");
        base64::encode(bytes)
    }

    pub(crate) fn unwrap(
        &self,
        job: &str,
        attempt: &str,
        wrapped: &str,
    ) -> Result<Bytes32, KeyError> {
        let failed = || KeyError::Unwrap {
            attempt: attempt.to_owned(),
        };
        let mut bytes = Zeroizing::new(base64::decode(wrapped).map_err(|_| failed())?);
        let key = self.derive(context::WRAP, &[job.as_bytes(), attempt.as_bytes()]);
        let (aead, nonce) = once(&key);
        let opened = aead.open_in_place(nonce, Aad::empty(), &mut bytes);
        let opened: &[u8] = opened.map_err(|_| failed())?;
        opened.try_into().map(Zeroizing::new).map_err(|_| failed())
    }

    /// Seals a value as the document `name` of the job.
    pub(crate) fn seal<T: Stored>(
        &self,
        job: &str,
        name: &str,
        value: &T,
    ) -> std::io::Result<Vec<u8>> {
        let mut salt = [0; 32];
        random(&mut salt)?;
        let place = [job.as_bytes(), name.as_bytes()];
        // A key of its own for each writing: the salt is long enough never to be drawn twice.
        let key = self.derive(context::DOCUMENT, &[&place[..], &[&salt[..]]].concat());
        let (aead, nonce) = once(&key);
        let mut plain = document::json(value).into_bytes();
        let header = document::sealed_header(T::KIND, value.version(), &self.id);
        aead.seal_in_place_append_tag(nonce, Aad::from(header.as_bytes()), &mut plain)
            .expect("a document is far below the limit of the cipher");
        let body = base64::encode([&salt[..], &plain].concat());
        let proof_key = self.derive(context::PROOF, &place);
        let prove = |signed: &[u8]| blake3::keyed_hash(&proof_key, signed).to_hex().to_string();
        Ok(document::sealed(
            T::KIND,
            value.version(),
            &self.id,
            &body,
            prove,
        ))
    }

    /// Opens the document `name` of the job.
    fn open<T: Stored>(
        &self,
        job: &str,
        name: &str,
        envelope: &Envelope<'_>,
    ) -> Result<T, DocumentError> {
        let place = [job.as_bytes(), name.as_bytes()];
        let proof_key = self.derive(context::PROOF, &place);
        // There is one way to write a proof. The comparison takes the same time wherever they differ.
        let is_lower = !envelope.proof.iter().any(u8::is_ascii_uppercase);
        let is_ours = blake3::Hash::from_hex(envelope.proof)
            .is_ok_and(|proof| proof == blake3::keyed_hash(&proof_key, envelope.signed));
        if !is_ours || !is_lower {
            return Err(DocumentError::Forged);
        }
        let body = std::str::from_utf8(envelope.body).map_err(|_| DocumentError::Forged)?;
        let mut bytes = base64::decode(body).map_err(|_| DocumentError::Forged)?;
        let (salt, sealed) = bytes
            .split_at_mut_checked(32)
            .ok_or(DocumentError::Forged)?;
        let key = self.derive(context::DOCUMENT, &[&place[..], &[&*salt]].concat());
        let (aead, nonce) = once(&key);
        let header = document::sealed_header(T::KIND, envelope.version, &self.id);
        let plain = aead
            .open_in_place(nonce, Aad::from(header.as_bytes()), sealed)
            .map_err(|_| DocumentError::Forged)?;
        document::from_json(plain)
    }
}

/// What is needed beside a secret to make its key again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct KeyDocument {
    id: String,
    made_from: MadeFrom,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum MadeFrom {
    /// A passphrase.
    Argon2id {
        memory_kib: u32,
        passes: u32,
        lanes: u32,
        /// Base64.
        salt: String,
    },
    Kms {
        /// As KMS names the key.
        key: String,
        /// The data key, encrypted by KMS with the job as context, in base64.
        wrapped: String,
    },
}

impl Stored for KeyDocument {
    const KIND: &'static str = "key";
    const VERSION: u32 = 1;
}

/// A secret that was read.
enum Material {
    Raw(Arc<MasterKey>),
    Passphrase(Zeroizing<Vec<u8>>),
    Kms(String),
}

impl Material {
    /// A file's or variable's contents: 32 bytes as they are, in hexadecimal or in base64, or else a passphrase.
    fn of(mut text: Zeroizing<Vec<u8>>, is_newest: bool) -> Result<Self, SecretError> {
        let raw = |key: [u8; 32]| {
            let key = Zeroizing::new(key);
            Ok(Self::Raw(Arc::new(MasterKey::new(key, is_newest))))
        };
        // A passphrase of 32 letters is one; 32 random bytes are hardly ever all printable.
        let is_text = text
            .iter()
            .all(|byte| matches!(byte, b'\n' | b'\r' | b' '..=b'~' | 0x80..));
        if let (Ok(key), false) = (
            <[u8; 32]>::try_from(&text[..]),
            is_text && std::str::from_utf8(&text).is_ok(),
        ) {
            return raw(key);
        }
        while text
            .last()
            .is_some_and(|byte| matches!(byte, b'\n' | b'\r'))
        {
            text.pop();
        }
        if text.is_empty() {
            return Err(SecretError::Empty);
        }
        if let Ok(key) = blake3::Hash::from_hex(&text[..]) {
            return raw(*key.as_bytes());
        }
        let decoded = std::str::from_utf8(&text)
            .ok()
            .filter(|text| text.len() == 44);
        let decoded = decoded.and_then(|text| base64::decode(text).ok());
        if let Some(Ok(key)) =
            decoded.map(|bytes| <[u8; 32]>::try_from(Zeroizing::new(bytes).as_slice()))
        {
            return raw(key);
        }
        match text.len() < SHORTEST_PASSPHRASE {
            true => Err(SecretError::TooShort),
            false => Ok(Self::Passphrase(text)),
        }
    }
}

/// Every key that was set for a job.
pub struct Keyring {
    /// The newest first.
    materials: Vec<Material>,
    unsealed: Unsealed,
    kms: Option<aws_sdk_kms::Client>,
    /// Keys that were made, by id.
    made: Mutex<HashMap<String, Arc<MasterKey>>>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring({} keys)", self.materials.len())
    }
}

/// A document that was opened, and the key that it was sealed with if it was.
#[derive(Debug)]
pub(crate) struct Opened<T> {
    pub value: T,
    pub key: Option<Arc<MasterKey>>,
}

/// Why a document was not opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error(transparent)]
    Document(#[from] DocumentError),
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// Where a document is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub store: &'a Arc<dyn Store>,
    pub job: &'a str,
    /// Relative to the job.
    pub name: &'a str,
}

impl Keyring {
    /// No key: nothing is sealed.
    pub fn none() -> Self {
        Self {
            materials: Vec::new(),
            unsealed: Unsealed::Accept,
            kms: None,
            made: Mutex::new(HashMap::new()),
        }
    }

    /// Reads secrets, the newest first. Asks neither a store nor KMS.
    pub fn read(
        sources: &[Source],
        unsealed: Unsealed,
        kms: Option<aws_sdk_kms::Client>,
    ) -> Result<Self, (Source, SecretError)> {
        let mut materials = Vec::new();
        let mut made = HashMap::new();
        for source in sources {
            let is_newest = materials.is_empty();
            let material = match source {
                Source::File(path) => {
                    read_file(path).and_then(|text| Material::of(text, is_newest))
                }
                Source::Environment(secret) => Material::of(secret.0.clone(), is_newest),
                Source::Kms(id) => Ok(Material::Kms(id.clone())),
            };
            let material = material.map_err(|error| (source.clone(), error))?;
            if let Material::Raw(key) = &material {
                made.entry(key.id.clone())
                    .or_insert_with(|| Arc::clone(key));
            }
            materials.push(material);
        }
        Ok(Self {
            materials,
            unsealed,
            kms,
            made: Mutex::new(made),
        })
    }

    #[cfg(test)]
    pub(crate) fn for_tests(numbers: &[u8], unsealed: Unsealed) -> Self {
        let secret = |number: &u8| Source::Environment(Secret::new(vec![*number; 32]));
        let sources: Vec<Source> = numbers.iter().map(secret).collect();
        Self::read(&sources, unsealed, None).expect("they are keys")
    }

    /// Whether what is written has to be sealed.
    pub fn seals(&self) -> bool {
        !self.materials.is_empty()
    }

    fn known(&self, id: &str) -> Option<Arc<MasterKey>> {
        let made = self.made.lock().expect("no holder of this lock panics");
        made.get(id).cloned()
    }

    fn keep(&self, key: MasterKey) -> Arc<MasterKey> {
        let mut made = self.made.lock().expect("no holder of this lock panics");
        let key = Arc::new(key);
        Arc::clone(made.entry(key.id.clone()).or_insert(key))
    }

    /// Opens a document. One that is not sealed is refused if there is a key, unless it is `vouched` for by what was.
    pub(crate) async fn open<T: Stored>(
        &self,
        place: Place<'_>,
        bytes: &[u8],
        vouched: bool,
        deadline: Instant,
    ) -> Result<Opened<T>, OpenError> {
        let envelope = Envelope::parse(T::KIND, T::OLDEST..=T::VERSION, bytes)?;
        let Some(id) = envelope.key else {
            let value = document::open(T::KIND, T::OLDEST..=T::VERSION, bytes)?;
            return match self.seals() && !vouched && self.unsealed == Unsealed::Refuse {
                true => Err(DocumentError::NotSealed.into()),
                false => Ok(Opened { value, key: None }),
            };
        };
        if !self.seals() {
            return Err(DocumentError::NoKey { key: id.into() }.into());
        }
        let key = match self.known(id) {
            Some(key) => key,
            None => self.make(place, id, deadline).await?,
        };
        let value = key.open(place.job, place.name, &envelope)?;
        Ok(Opened {
            value,
            key: Some(key),
        })
    }

    /// Makes the key of this id from one of the secrets and its key document.
    async fn make(
        &self,
        place: Place<'_>,
        id: &str,
        deadline: Instant,
    ) -> Result<Arc<MasterKey>, OpenError> {
        let other = || DocumentError::OtherKey { key: id.to_owned() };
        let needs_document = |material: &Material| !matches!(material, Material::Raw(_));
        if !self.materials.iter().any(needs_document) {
            return Err(other().into());
        }
        let name = format!("{PREFIX}{id}");
        let full = format!("{}/{name}", place.job);
        let read = retry::retry(deadline, "get", || {
            place.store.get(&full, document::SIZE_LIMIT)
        });
        let object = match read.await {
            Ok(object) => object,
            // A key of 32 bytes has none, so this may simply be another one.
            Err(error) if error.kind == StoreErrorKind::NotFound => {
                return Err(match self.materials.iter().all(needs_document) {
                    true => KeyError::NoKeyDocument(name).into(),
                    false => other().into(),
                });
            }
            Err(error) => return Err(KeyError::from(error).into()),
        };
        let found: KeyDocument = document::open(
            KeyDocument::KIND,
            KeyDocument::VERSION..=KeyDocument::VERSION,
            &object.bytes,
        )
        .map_err(|source| KeyError::KeyDocument {
            key: name.clone(),
            source,
        })?;
        for (number, material) in self.materials.iter().enumerate() {
            let key = match (material, &found.made_from) {
                (
                    Material::Passphrase(passphrase),
                    MadeFrom::Argon2id {
                        memory_kib,
                        passes,
                        lanes,
                        salt,
                    },
                ) => {
                    let salt = base64::decode(salt).unwrap_or_default();
                    let params = params(*memory_kib, *passes, *lanes)
                        .filter(|_| salt.len() >= 16)
                        .ok_or_else(|| KeyError::Derivation(name.clone()))?;
                    Some(derive(passphrase.clone(), salt, params).await)
                }
                (Material::Kms(kms_key), MadeFrom::Kms { wrapped, .. }) => {
                    match self
                        .kms_decrypt(place.job, kms_key, wrapped, deadline)
                        .await
                    {
                        Ok(key) => Some(key),
                        // Another one of the keys may do.
                        Err(_) if number + 1 < self.materials.len() => None,
                        Err(error) => return Err(error.into()),
                    }
                }
                _ => None,
            };
            if let Some(key) = key {
                let key = MasterKey::new(key, number == 0);
                if key.id == id {
                    return Ok(self.keep(key));
                }
            }
        }
        Err(other().into())
    }

    /// The key that new documents of the job are sealed with: that of the head, if it was made from the newest secret, or a
    /// new one, whose key document is then stored. `None` if nothing is to be sealed.
    pub(crate) async fn newest(
        &self,
        store: &Arc<dyn Store>,
        job: &str,
        present: Option<&Arc<MasterKey>>,
        deadline: Instant,
    ) -> Result<Option<Arc<MasterKey>>, KeyError> {
        let Some(material) = self.materials.first() else {
            return Ok(None);
        };
        if let Some(present) = present.filter(|key| key.is_newest) {
            return Ok(Some(Arc::clone(present)));
        }
        let (key, made_from) = match material {
            Material::Raw(key) => return Ok(Some(Arc::clone(key))),
            Material::Passphrase(passphrase) => {
                let mut salt = [0; 16];
                random(&mut salt)?;
                let params =
                    params(ARGON2_KIB, ARGON2_PASSES, 1).expect("they are within the limits");
                let made_from = MadeFrom::Argon2id {
                    memory_kib: ARGON2_KIB,
                    passes: ARGON2_PASSES,
                    lanes: 1,
                    salt: base64::encode(salt),
                };
                (
                    derive(passphrase.clone(), salt.to_vec(), params).await,
                    made_from,
                )
            }
            Material::Kms(kms_key) => self.kms_generate(job, kms_key, deadline).await?,
        };
        let key = MasterKey::new(key, true);
        let document = KeyDocument {
            id: key.id.clone(),
            made_from,
        };
        let bytes = document::seal(KeyDocument::KIND, KeyDocument::VERSION, &document);
        let full = format!("{job}/{PREFIX}{}", key.id);
        let bytes = Bytes::from(bytes);
        // The name is as new as the key, so repeating it after a lost reply is harmless.
        retry::retry(deadline, "put", || {
            store.put(&full, bytes.clone(), Condition::Always)
        })
        .await?;
        Ok(Some(self.keep(key)))
    }

    fn kms(&self) -> &aws_sdk_kms::Client {
        self.kms.as_ref().expect("made whenever a KMS key is set")
    }

    async fn kms_generate(
        &self,
        job: &str,
        kms_key: &str,
        deadline: Instant,
    ) -> Result<(Bytes32, MadeFrom), KeyError> {
        let call = "generate a data key";
        let sent = self
            .kms()
            .generate_data_key()
            .key_id(kms_key)
            .key_spec(DataKeySpec::Aes256)
            .encryption_context(KMS_CONTEXT, job)
            .send();
        let answer = match timeout_at(deadline, Box::pin(sent)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(kms_error(call, kms_key, &error)),
            Err(_) => return Err(kms_silent(call, kms_key)),
        };
        let plain = answer
            .plaintext
            .map(|blob| Zeroizing::new(blob.into_inner()));
        let key = plain.and_then(|plain| <[u8; 32]>::try_from(&plain[..]).ok());
        let (Some(key), Some(wrapped)) = (key, answer.ciphertext_blob) else {
            return Err(kms_odd(call, kms_key));
        };
        let made_from = MadeFrom::Kms {
            key: answer.key_id.unwrap_or_else(|| kms_key.to_owned()),
            wrapped: base64::encode(wrapped.into_inner()),
        };
        Ok((Zeroizing::new(key), made_from))
    }

    /// Names the key: one that others encrypted for this job, with a key of theirs, must not become ours.
    async fn kms_decrypt(
        &self,
        job: &str,
        kms_key: &str,
        wrapped: &str,
        deadline: Instant,
    ) -> Result<Bytes32, KeyError> {
        let call = "decrypt the job's key";
        let wrapped = base64::decode(wrapped).map_err(|_| kms_odd(call, kms_key))?;
        let sent = self
            .kms()
            .decrypt()
            .key_id(kms_key)
            .ciphertext_blob(wrapped.into())
            .encryption_context(KMS_CONTEXT, job)
            .send();
        let answer = match timeout_at(deadline, Box::pin(sent)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(kms_error(call, kms_key, &error)),
            Err(_) => return Err(kms_silent(call, kms_key)),
        };
        let plain = answer
            .plaintext
            .map(|blob| Zeroizing::new(blob.into_inner()));
        plain
            .and_then(|plain| <[u8; 32]>::try_from(&plain[..]).ok())
            .map(Zeroizing::new)
            .ok_or_else(|| kms_odd(call, kms_key))
    }
}

/// Only the code and the message of the service: nothing else of its answers is repeated.
fn kms_error<E: aws_smithy_types::error::metadata::ProvideErrorMetadata>(
    call: &'static str,
    key: &str,
    error: &E,
) -> KeyError {
    let code = error
        .code()
        .unwrap_or("it was not reached, or there are no credentials for it");
    let message = error.message().unwrap_or_default();
    KeyError::Kms {
        call,
        key: key.to_owned(),
        message: [code, message].join(" ").trim_end().to_owned(),
    }
}

fn kms_silent(call: &'static str, key: &str) -> KeyError {
    KeyError::Kms {
        call,
        key: key.to_owned(),
        message: "it did not answer in time".into(),
    }
}

fn kms_odd(call: &'static str, key: &str) -> KeyError {
    KeyError::Kms {
        call,
        key: key.to_owned(),
        message: "that is no key of 32 bytes".into(),
    }
}

fn params(memory_kib: u32, passes: u32, lanes: u32) -> Option<Params> {
    let allowed = ARGON2_KIB_LIMITS.contains(&memory_kib)
        && ARGON2_PASSES_LIMITS.contains(&passes)
        && ARGON2_LANES_LIMITS.contains(&lanes);
    let params = Params::new(memory_kib, passes, lanes, Some(32)).ok()?;
    allowed.then_some(params)
}

/// Takes a tenth of a second and the memory of `params`, on a thread that may block.
async fn derive(passphrase: Zeroizing<Vec<u8>>, salt: Vec<u8>, params: Params) -> Bytes32 {
    let derived = tokio::task::spawn_blocking(move || {
        let mut key = Zeroizing::new([0; 32]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(&passphrase, &salt, &mut *key)
            .expect("lengths and parameters were checked");
        key
    });
    derived.await.expect("a derivation does not panic")
}

fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, SecretError> {
    let file = std::fs::File::open(path).map_err(SecretError::Read)?;
    let mode = file.metadata().map_err(SecretError::Read)?.mode();
    if mode & 0o077 != 0 {
        tracing::warn!(
            path = %path.display(),
            mode = format!("{:o}", mode & 0o777),
            "others may read the key file; chmod it to 0400"
        );
    }
    // At once as large as it may get: a buffer that grows leaves copies behind.
    let mut text = Zeroizing::new(Vec::with_capacity(
        usize::try_from(FILE_LIMIT).expect("it is small") + 2,
    ));
    file.take(FILE_LIMIT + 1)
        .read_to_end(&mut text)
        .map_err(SecretError::Read)?;
    match text.len() as u64 > FILE_LIMIT {
        true => Err(SecretError::TooLarge),
        false => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    use reprieve_core::head::Head;

    use crate::catalog::tests::soon;
    use crate::store::DirectoryStore;

    const NAME: &str = "HEAD";

    fn store() -> (tempfile::TempDir, Arc<dyn Store>) {
        let directory = tempfile::tempdir().expect("temporary directory");
        let store: Arc<dyn Store> = Arc::new(DirectoryStore::new(directory.path()));
        (directory, store)
    }

    fn passphrases(words: &[&str]) -> Keyring {
        let secret = |word: &&str| Source::Environment(Secret::new(word.as_bytes().to_vec()));
        let sources: Vec<Source> = words.iter().map(secret).collect();
        Keyring::read(&sources, Unsealed::Refuse, None).expect("they are passphrases")
    }

    async fn open(
        keys: &Keyring,
        store: &Arc<dyn Store>,
        job: &str,
        bytes: &[u8],
    ) -> Result<Head, OpenError> {
        let name = NAME;
        let opened = keys.open(Place { store, job, name }, bytes, false, soon());
        opened.await.map(|opened| opened.value)
    }

    #[test]
    fn a_secret_is_a_key_when_it_looks_like_one() {
        let raw = |text: &[u8]| match Material::of(Zeroizing::new(text.to_vec()), true) {
            Ok(Material::Raw(key)) => Some(*key.key),
            Ok(_) => None,
            Err(error) => panic!("{error}"),
        };
        let key: [u8; 32] = std::array::from_fn(|at| u8::try_from(at * 7).expect("small"));
        let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        for text in [
            key.to_vec(),
            hex.clone().into_bytes(),
            (hex + "\n").into_bytes(),
            (base64::encode(key) + "\r\n").into_bytes(),
        ] {
            assert_eq!(raw(&text), Some(key));
        }
        for text in [
            "correct horse battery staple 32!",
            "twelve words or so\n",
            "{}{}{}{}{}",
        ] {
            assert_eq!(raw(text.as_bytes()), None, "{text}");
        }
        for (text, short) in [("", false), ("\n", false), ("seven!!", true)] {
            let refused = Material::of(Zeroizing::new(text.into()), true);
            let refused = refused.err().expect("it is refused");
            assert_eq!(matches!(refused, SecretError::TooShort), short, "{refused}");
        }
    }

    #[tokio::test]
    async fn a_passphrase_opens_what_it_sealed_and_another_one_does_not() {
        let (_directory, store) = store();
        let head = Head::new("job");
        let writer = passphrases(&["correct horse"]);
        let key = writer.newest(&store, "job", None, soon()).await;
        let key = key.expect("it is stored").expect("there is a secret");
        let sealed = key.seal("job", NAME, &head).expect("random bytes");

        // Another process, which derives it again.
        let reader = passphrases(&["correct horse"]);
        assert_eq!(
            open(&reader, &store, "job", &sealed)
                .await
                .expect("it fits"),
            head
        );
        let found = reader.known(key.id()).expect("it was kept");
        let newest = reader.newest(&store, "job", Some(&found), soon()).await;
        let newest = newest.expect("nothing is to be stored");
        assert_eq!(
            newest.expect("there is a secret").id(),
            key.id(),
            "the head's key is reused"
        );

        let rotated = passphrases(&["new passphrase", "correct horse"]);
        open(&rotated, &store, "job", &sealed)
            .await
            .expect("the old one still opens");
        let found = rotated.known(key.id());
        let newest = rotated.newest(&store, "job", found.as_ref(), soon()).await;
        let newest = newest.expect("it is stored").expect("there is a secret");
        assert_ne!(newest.id(), key.id(), "new documents get the new key");

        let wrong = open(&passphrases(&["wrong horse"]), &store, "job", &sealed).await;
        assert!(
            matches!(
                wrong,
                Err(OpenError::Document(DocumentError::OtherKey { .. }))
            ),
            "{wrong:?}"
        );
        let none = open(&Keyring::none(), &store, "job", &sealed).await;
        assert!(
            matches!(none, Err(OpenError::Document(DocumentError::NoKey { .. }))),
            "{none:?}"
        );
        let full = format!("job/{PREFIX}{}", key.id());
        store.delete(&full).await.expect("it is there");
        let lost = open(&passphrases(&["correct horse"]), &store, "job", &sealed).await;
        assert!(
            matches!(lost, Err(OpenError::Key(KeyError::NoKeyDocument(_)))),
            "{lost:?}"
        );
    }

    #[tokio::test]
    async fn key_documents_that_ask_for_too_much_or_too_little_are_refused() {
        let (_directory, store) = store();
        let key = MasterKey::for_tests(1);
        let sealed = key
            .seal("job", NAME, &Head::new("job"))
            .expect("random bytes");
        for (memory_kib, passes, lanes, salt) in [
            (8, 3, 1, [0; 16].as_slice()),
            (u32::MAX, 3, 1, &[0; 16]),
            (ARGON2_KIB, 1, 1, &[0; 16]),
            (ARGON2_KIB, 1000, 1, &[0; 16]),
            (ARGON2_KIB, 3, 99, &[0; 16]),
            (ARGON2_KIB, 3, 1, &[0; 4]),
        ] {
            let salt = base64::encode(salt);
            let made_from = MadeFrom::Argon2id {
                memory_kib,
                passes,
                lanes,
                salt,
            };
            let document = KeyDocument {
                id: key.id().into(),
                made_from,
            };
            let bytes = document::seal(KeyDocument::KIND, KeyDocument::VERSION, &document);
            let full = format!("job/{PREFIX}{}", key.id());
            store
                .put(&full, bytes.into(), Condition::Always)
                .await
                .expect("it is stored");
            let refused = open(&passphrases(&["correct horse"]), &store, "job", &sealed).await;
            assert!(
                matches!(refused, Err(OpenError::Key(KeyError::Derivation(_)))),
                "{memory_kib} {passes} {lanes}: {refused:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_document_opens_in_its_own_place_only() {
        let (_directory, store) = store();
        let keys = Keyring::for_tests(&[1], Unsealed::Refuse);
        let key = MasterKey::for_tests(1);
        let head = Head::new("job");
        let sealed = key.seal("job", NAME, &head).expect("random bytes");
        assert!(
            !String::from_utf8_lossy(&sealed).contains("job"),
            "it can be read"
        );
        assert_eq!(
            open(&keys, &store, "job", &sealed).await.expect("it fits"),
            head
        );
        for (job, name) in [("other", NAME), ("job", "manifests/x")] {
            let place = Place {
                store: &store,
                job,
                name,
            };
            let moved = keys.open::<Head>(place, &sealed, true, soon()).await;
            assert!(
                matches!(moved, Err(OpenError::Document(DocumentError::Forged))),
                "{job} {name}"
            );
        }
        let other = MasterKey::for_tests(2)
            .seal("job", NAME, &head)
            .expect("random bytes");
        let refused = open(&keys, &store, "job", &other).await;
        assert!(matches!(
            refused,
            Err(OpenError::Document(DocumentError::OtherKey { .. }))
        ));
        // With the name of our key on it.
        let forged = String::from_utf8(other).expect("it is text");
        let forged = forged.replace(MasterKey::for_tests(2).id(), key.id());
        let refused = open(&keys, &store, "job", forged.as_bytes()).await;
        assert!(matches!(
            refused,
            Err(OpenError::Document(DocumentError::Forged))
        ));

        let plain = head.to_bytes();
        let refused = open(&keys, &store, "job", &plain).await;
        assert!(matches!(
            refused,
            Err(OpenError::Document(DocumentError::NotSealed))
        ));
        let willing = Keyring::for_tests(&[1], Unsealed::Accept);
        open(&willing, &store, "job", &plain)
            .await
            .expect("it was asked for");
        let place = Place {
            store: &store,
            job: "job",
            name: NAME,
        };
        let vouched = keys.open::<Head>(place, &plain, true, soon()).await;
        assert!(vouched.expect("its digest is known").key.is_none());
    }

    #[test]
    fn nothing_prints_a_key() {
        let key = MasterKey::for_tests(0xab);
        let keys = Keyring::for_tests(&[0xab], Unsealed::Refuse);
        let said = format!(
            "{key:?} {keys:?} {:?}",
            Secret::new(b"correct horse".to_vec())
        );
        assert!(
            !said.contains("horse") && !said.contains("171") && !said.contains("abab"),
            "{said}"
        );
    }

    #[test]
    fn a_seal_is_never_the_same_twice() {
        let key = MasterKey::for_tests(1);
        let seal = || {
            key.seal("job", NAME, &Head::new("job"))
                .expect("random bytes")
        };
        assert_ne!(seal(), seal());
    }

    proptest! {
        #[test]
        fn no_flipped_bit_is_accepted(at in any::<usize>(), bit in 0u8..8) {
            let key = MasterKey::for_tests(1);
            let mut bytes = key.seal("job", NAME, &Head::new("job")).expect("random bytes");
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            let opened = Envelope::parse(Head::KIND, Head::VERSION..=Head::VERSION, &bytes)
                .and_then(|envelope| match envelope.key {
                    Some(id) if id == key.id() => key.open::<Head>("job", NAME, &envelope),
                    _ => Err(DocumentError::Forged),
                });
            prop_assert!(opened.is_err());
        }

        #[test]
        fn a_wrapped_key_comes_back(data in any::<[u8; 32]>(), job in "[a-z]{1,9}", attempt in "[0-9A-Z]{26}") {
            let key = MasterKey::for_tests(1);
            let wrapped = key.wrap(&job, &attempt, &data);
            prop_assert_eq!(*key.unwrap(&job, &attempt, &wrapped).expect("it fits"), data);
            prop_assert!(key.unwrap(&job, "another", &wrapped).is_err());
            prop_assert!(key.unwrap("another-job", &attempt, &wrapped).is_err());
            prop_assert!(key.unwrap(&job, &attempt, &wrapped[4..]).is_err());
        }
    }
}
