//! Stored documents that are generated from a table in the code: the stored text must equal the generated one.
//! `UPDATE_DOCS=1 cargo test -p reprieve --lib` writes them anew.

use std::path::Path;

/// Compares `docs/<name>` with the generated text, or replaces it when `UPDATE_DOCS` is set.
pub(crate) fn assert_document(name: &str, generated: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs")
        .join(name);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, generated).expect("the docs directory can be written");
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        stored == generated,
        "docs/{name} is not what the table in the code says; run: UPDATE_DOCS=1 cargo test -p reprieve --lib"
    );
}
