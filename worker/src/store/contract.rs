//! What every store keeps, as one suite to run against each implementation.
//!
//! It is compiled into the library's own tests and, by path, into the tests against a real server; the product has none
//! of it. Each check works under a first segment of its own, so they may share a store, which begins empty.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;

use crate::store::{Condition, Entry, Store, StoreError, StoreErrorKind, Tag};

/// Writers that race for one key.
const RACERS: usize = 16;
/// More than any adapter moves in one piece by accident.
const LARGE: usize = 9 * 1024 * 1024;

pub(crate) struct Subject {
    /// An empty store.
    pub(crate) store: Arc<dyn Store>,
    /// The same kind of store where there is none.
    pub(crate) missing: Arc<dyn Store>,
    /// Objects in the listing that has to be paged.
    pub(crate) many: usize,
}

/// Panics at the first thing that does not hold.
pub(crate) async fn holds_for(subject: &Subject) {
    let store = &subject.store;
    store.reach().await.expect("the store is there");
    assert_eq!(
        store.list("", None, 10).await.expect("it may be listed"),
        []
    );
    objects_come_back_as_they_were_put(store).await;
    a_get_is_refused_above_its_limit(store).await;
    ranges_are_exact(store).await;
    unknown_keys_are_not_found(store).await;
    deleting_is_idempotent(store).await;
    tags_follow_the_bytes(store).await;
    conditions_are_kept(store).await;
    one_creator_wins(store).await;
    one_writer_per_tag_wins(store).await;
    listings_are_ordered_and_bounded_by_their_prefix(store).await;
    long_listings_continue_where_they_ended(store, subject.many).await;
    unusable_keys_are_refused(store).await;
    a_missing_store_is_never_an_empty_one(&subject.missing).await;
}

async fn objects_come_back_as_they_were_put(store: &Arc<dyn Store>) {
    for (key, bytes) in [
        ("whole/empty", Bytes::new()),
        ("whole/small", Bytes::from_static(b"HEAD")),
        (
            "whole/deep/er/ä b+c%20d=&~",
            Bytes::from_static(b"odd but legal"),
        ),
        ("whole/large", pattern(LARGE)),
    ] {
        let tag = put(store, key, bytes.clone(), Condition::Always)
            .await
            .expect(key);
        let object = store.get(key, bytes.len() as u64).await.expect(key);
        assert_eq!(object.tag, tag, "{key}");
        assert!(object.bytes == bytes, "{key}: other bytes came back");
        assert_eq!(store.size(key).await.expect(key), bytes.len() as u64);
    }
    let keys = all_keys(store, "whole/", 100).await;
    assert_eq!(
        keys,
        [
            "whole/deep/er/ä b+c%20d=&~",
            "whole/empty",
            "whole/large",
            "whole/small"
        ]
    );
}

async fn a_get_is_refused_above_its_limit(store: &Arc<dyn Store>) {
    put(store, "limit/x", "12345", Condition::Always)
        .await
        .expect("put");
    assert_eq!(
        store.get("limit/x", 5).await.expect("just within").bytes,
        "12345"
    );
    assert_eq!(kind(store.get("limit/x", 4).await), StoreErrorKind::BadSize);
    assert_eq!(kind(store.get("limit/x", 0).await), StoreErrorKind::BadSize);
}

async fn ranges_are_exact(store: &Arc<dyn Store>) {
    let bytes = pattern(10_000);
    put(store, "range/x", bytes.clone(), Condition::Always)
        .await
        .expect("put");
    for (offset, length) in [
        (0, 1),
        (9_999, 1),
        (0, 10_000),
        (4_095, 4_098),
        (10, 0),
        (10_000, 0),
    ] {
        let part = store
            .get_range("range/x", offset as u64, length as u64)
            .await
            .expect("inside");
        assert!(part == bytes[offset..offset + length], "{offset}+{length}");
    }
    for (offset, length) in [
        (0, 10_001),
        (9_999, 2),
        (10_000, 1),
        (20_000, 5),
        (10_001, 0),
        (u64::MAX, 2),
        (1, u64::MAX),
    ] {
        assert_eq!(
            kind(store.get_range("range/x", offset, length).await),
            StoreErrorKind::BadSize,
            "{offset}+{length}"
        );
    }
    put(store, "range/empty", Bytes::new(), Condition::Always)
        .await
        .expect("put");
    assert_eq!(
        store.get_range("range/empty", 0, 0).await.expect("inside"),
        ""
    );
    assert_eq!(
        kind(store.get_range("range/empty", 0, 1).await),
        StoreErrorKind::BadSize
    );
}

async fn unknown_keys_are_not_found(store: &Arc<dyn Store>) {
    put(store, "unknown/directory/x", "x", Condition::Always)
        .await
        .expect("put");
    // The third is what a file system calls a directory; the last would lie below an object.
    for key in [
        "unknown/y",
        "unknown/other/y",
        "unknown/directory",
        "unknown/directory/x/y",
    ] {
        assert_eq!(
            kind(store.get(key, 10).await),
            StoreErrorKind::NotFound,
            "{key}"
        );
        assert_eq!(
            kind(store.get_range(key, 0, 1).await),
            StoreErrorKind::NotFound,
            "{key}"
        );
        assert_eq!(
            kind(store.get_range(key, 0, 0).await),
            StoreErrorKind::NotFound,
            "{key}"
        );
        assert_eq!(
            kind(store.size(key).await),
            StoreErrorKind::NotFound,
            "{key}"
        );
        store.delete(key).await.expect("nothing to delete is fine");
    }
    assert_eq!(
        all_keys(store, "unknown/", 10).await,
        ["unknown/directory/x"]
    );
}

async fn deleting_is_idempotent(store: &Arc<dyn Store>) {
    put(store, "delete/a/x", "x", Condition::Always)
        .await
        .expect("put");
    put(store, "delete/b/x", "x", Condition::Always)
        .await
        .expect("put");
    store.delete("delete/a/x").await.expect("delete");
    store
        .delete("delete/a/x")
        .await
        .expect("delete what is gone");
    assert_eq!(
        kind(store.get("delete/a/x", 10).await),
        StoreErrorKind::NotFound
    );
    assert_eq!(all_keys(store, "delete/", 10).await, ["delete/b/x"]);
    put(store, "delete/a/x", "again", Condition::Absent)
        .await
        .expect("its place is free again");
}

async fn tags_follow_the_bytes(store: &Arc<dyn Store>) {
    let mut seen = HashSet::new();
    for bytes in ["a", "b", "", "ab", "ba"] {
        let tag = put(store, "tag/x", bytes, Condition::Always)
            .await
            .expect("put");
        assert_eq!(store.get("tag/x", 10).await.expect("get").tag, tag);
        assert!(seen.insert(tag), "the tag of {bytes:?} was seen before");
    }
}

async fn conditions_are_kept(store: &Arc<dyn Store>) {
    let unknown = Tag("\"00000000000000000000000000000000\"".to_owned());
    let missing = put(
        store,
        "condition/x",
        "0",
        Condition::Matches(unknown.clone()),
    )
    .await;
    assert_eq!(
        kind(missing),
        StoreErrorKind::ConditionFailed,
        "a condition on nothing"
    );
    assert_eq!(
        kind(store.get("condition/x", 10).await),
        StoreErrorKind::NotFound
    );

    let first = put(store, "condition/x", "1", Condition::Absent)
        .await
        .expect("it is absent");
    assert_eq!(
        kind(put(store, "condition/x", "2", Condition::Absent).await),
        StoreErrorKind::ConditionFailed
    );
    assert_eq!(
        kind(put(store, "condition/x", "2", Condition::Matches(unknown)).await),
        StoreErrorKind::ConditionFailed
    );
    assert_eq!(
        store.get("condition/x", 10).await.expect("get").bytes,
        "1",
        "a refused put changes nothing"
    );

    let second = put(store, "condition/x", "2", Condition::Matches(first.clone()))
        .await
        .expect("the tag is current");
    assert_eq!(
        kind(put(store, "condition/x", "3", Condition::Matches(first)).await),
        StoreErrorKind::ConditionFailed
    );
    assert_eq!(store.get("condition/x", 10).await.expect("get").bytes, "2");

    store.delete("condition/x").await.expect("delete");
    assert_eq!(
        kind(put(store, "condition/x", "4", Condition::Matches(second)).await),
        StoreErrorKind::ConditionFailed
    );
    assert_eq!(all_keys(store, "condition/", 10).await, [""; 0]);
}

async fn one_creator_wins(store: &Arc<dyn Store>) {
    for round in 0..3 {
        let key = format!("create/{round}");
        let winner = race(store, &key, &Condition::Absent).await;
        assert_eq!(
            store.get(&key, 100).await.expect("one was stored").bytes,
            winner
        );
    }
}

async fn one_writer_per_tag_wins(store: &Arc<dyn Store>) {
    let mut tag = put(store, "swap/x", "begin", Condition::Absent)
        .await
        .expect("put");
    for _ in 0..5 {
        let winner = race(store, "swap/x", &Condition::Matches(tag)).await;
        let object = store.get("swap/x", 100).await.expect("get");
        assert_eq!(object.bytes, winner);
        tag = object.tag;
    }
}

/// What the only winner wrote. A lost race in flight ([`StoreErrorKind::Conflict`]) is tried again, as callers do.
async fn race(store: &Arc<dyn Store>, key: &str, condition: &Condition) -> Bytes {
    let nonce = fastrand::u64(..);
    let racers = (0..RACERS).map(|racer| {
        let (store, key, condition) = (Arc::clone(store), key.to_owned(), condition.clone());
        let bytes = Bytes::from(format!("{racer} of {nonce}"));
        tokio::spawn(async move {
            loop {
                match store.put(&key, bytes.clone(), condition.clone()).await {
                    Ok(_) => return Some(bytes),
                    Err(e) if e.kind == StoreErrorKind::Conflict => tokio::task::yield_now().await,
                    Err(e) if e.kind == StoreErrorKind::ConditionFailed => return None,
                    Err(e) => panic!("{e}"),
                }
            }
        })
    });
    let outcomes = futures::future::try_join_all(racers)
        .await
        .expect("no racer panics");
    let mut winners = outcomes.into_iter().flatten();
    let winner = winners.next().expect("one of them wins");
    assert_eq!(winners.next(), None, "{key}: a second winner");
    winner
}

async fn listings_are_ordered_and_bounded_by_their_prefix(store: &Arc<dyn Store>) {
    // As strings these sort otherwise than as trees of directories, or than by case.
    let sorted = [
        "list/A",
        "list/a",
        "list/a!",
        "list/a-b",
        "list/a/b",
        "list/a/b/c",
        "list/a/c",
        "list/a0",
        "list/b/z",
        "list/é",
    ];
    // A directory cannot hold both an object and what lies below it.
    let sorted: Vec<&str> = sorted
        .into_iter()
        .filter(|key| !matches!(*key, "list/a" | "list/a/b"))
        .collect();
    for key in sorted.iter().rev() {
        put(store, key, key.to_owned(), Condition::Always)
            .await
            .expect(key);
    }
    put(store, "lis", "x", Condition::Always)
        .await
        .expect("put");
    put(store, "list-x/y", "x", Condition::Always)
        .await
        .expect("put");

    assert_eq!(all_keys(store, "list/", 100).await, sorted);
    assert_eq!(
        all_keys(store, "list/a", 100).await,
        ["list/a!", "list/a-b", "list/a/b/c", "list/a/c", "list/a0"]
    );
    assert_eq!(
        all_keys(store, "list/a/", 100).await,
        ["list/a/b/c", "list/a/c"]
    );
    assert_eq!(all_keys(store, "list/a/c", 100).await, ["list/a/c"]);
    assert_eq!(all_keys(store, "list/nothing", 100).await, [""; 0]);
    assert_eq!(all_keys(store, "nothing/at/all/", 100).await, [""; 0]);
    assert_eq!(
        all_keys(store, "list", 3).await,
        ["list-x/y", "list/A", "list/a!"]
    );
    assert_eq!(all_keys(store, "list/", 0).await, [""; 0]);

    let after = async |prefix: &str, after: &str| {
        keys(store.list(prefix, Some(after), 100).await.expect("list"))
    };
    assert_eq!(after("list/", "list/a!").await, sorted[2..]);
    assert_eq!(
        after("list/", "list/a/").await,
        ["list/a/b/c", "list/a/c", "list/a0", "list/b/z", "list/é"]
    );
    assert_eq!(
        after("list/", "list/a/b/c").await,
        ["list/a/c", "list/a0", "list/b/z", "list/é"]
    );
    assert_eq!(after("list/a/", "list/a/b/x").await, ["list/a/c"]);
    // Before and behind everything the prefix covers.
    assert_eq!(after("list/a/", "a").await, ["list/a/b/c", "list/a/c"]);
    assert_eq!(after("list/a/", "list/b").await, [""; 0]);
    assert_eq!(after("list/", "list/é").await, [""; 0]);

    let entries = store.list("list/é", None, 1).await.expect("list");
    assert_eq!(entries[0].size, "list/é".len() as u64);
    let age = std::time::UNIX_EPOCH
        .elapsed()
        .expect("a clock")
        .as_millis()
        .abs_diff(u128::from(entries[0].modified_ms));
    assert!(age < 10 * 60 * 1000, "written {age} ms from now");
}

async fn long_listings_continue_where_they_ended(store: &Arc<dyn Store>, many: usize) {
    let expected: Vec<String> = (0..many)
        .map(|n| format!("many/{:02}/{n:05}", n / 100))
        .collect();
    for some in expected.chunks(8) {
        let puts = some
            .iter()
            .map(|key| put(store, key, Bytes::new(), Condition::Always));
        futures::future::try_join_all(puts).await.expect("put");
    }
    assert_eq!(all_keys(store, "many/", many + 1).await, expected);
    assert_eq!(all_keys(store, "many/", many).await, expected);
    assert_eq!(
        all_keys(store, "many/", many - 1).await,
        expected[..many - 1]
    );

    let mut seen: Vec<String> = Vec::new();
    loop {
        let page = store
            .list("many/", seen.last().map(String::as_str), 17)
            .await
            .expect("list");
        assert!(page.len() <= 17);
        if page.is_empty() {
            break;
        }
        seen.extend(keys(page));
    }
    assert_eq!(seen, expected);
}

async fn unusable_keys_are_refused(store: &Arc<dyn Store>) {
    for key in [
        "", "/x", "../x", "a/../x", "a//x", "a/", ".x", "a/.x", "a\nb",
    ] {
        assert_eq!(
            kind(store.get(key, 10).await),
            StoreErrorKind::Other,
            "{key:?}"
        );
        assert_eq!(
            kind(store.get_range(key, 0, 1).await),
            StoreErrorKind::Other,
            "{key:?}"
        );
        assert_eq!(
            kind(store.size(key).await),
            StoreErrorKind::Other,
            "{key:?}"
        );
        assert_eq!(
            kind(put(store, key, "x", Condition::Always).await),
            StoreErrorKind::Other,
            "{key:?}"
        );
        assert_eq!(
            kind(store.delete(key).await),
            StoreErrorKind::Other,
            "{key:?}"
        );
    }
    for prefix in ["/", "../", "a//", "a\n"] {
        assert_eq!(
            kind(store.list(prefix, None, 10).await),
            StoreErrorKind::Other,
            "{prefix:?}"
        );
    }
}

async fn a_missing_store_is_never_an_empty_one(missing: &Arc<dyn Store>) {
    let no_store = StoreErrorKind::NoSuchStore;
    assert_eq!(kind(missing.reach().await), no_store);
    assert_eq!(kind(missing.list("", None, 10).await), no_store);
    assert_eq!(kind(missing.list("some/prefix/", None, 10).await), no_store);
    assert_eq!(kind(missing.get("HEAD", 10).await), no_store);
    assert_eq!(kind(missing.get_range("HEAD", 0, 1).await), no_store);
    assert_eq!(kind(missing.size("HEAD").await), no_store);
    assert_eq!(kind(missing.delete("HEAD").await), no_store);
    for condition in [
        Condition::Always,
        Condition::Absent,
        Condition::Matches(Tag("\"0\"".to_owned())),
    ] {
        assert_eq!(kind(put(missing, "a/HEAD", "x", condition).await), no_store);
    }
    assert_eq!(
        kind(missing.reach().await),
        no_store,
        "a put makes no store"
    );
}

async fn put(
    store: &Arc<dyn Store>,
    key: &str,
    bytes: impl Into<Bytes>,
    condition: Condition,
) -> Result<Tag, StoreError> {
    store.put(key, bytes.into(), condition).await
}

async fn all_keys(store: &Arc<dyn Store>, prefix: &str, limit: usize) -> Vec<String> {
    keys(store.list(prefix, None, limit).await.expect("list"))
}

fn keys(entries: Vec<Entry>) -> Vec<String> {
    entries.into_iter().map(|entry| entry.key).collect()
}

fn kind<T: std::fmt::Debug>(result: Result<T, StoreError>) -> StoreErrorKind {
    result.expect_err("it has to be refused").kind
}

/// Bytes that differ from their neighbours near and far.
fn pattern(length: usize) -> Bytes {
    (0_u32..)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .take(length)
        .collect()
}
