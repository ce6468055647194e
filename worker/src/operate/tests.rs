use super::*;

#[test]
fn snapshots_are_named_by_number_by_tag_or_as_the_newest() {
    let tag = |text: &str| Selector::Tag(Tag(text.to_owned()));
    for (text, expected) in [
        ("12", Ok(Selector::Number(12))),
        ("newest", Ok(Selector::Newest)),
        ("v1.2_a-b", Ok(tag("v1.2_a-b"))),
        ("", Err(NameError::Selector)),
        ("-1", Err(NameError::Selector)),
        ("1a", Err(NameError::Selector)),
        ("a b", Err(NameError::Selector)),
        ("a/b", Err(NameError::Selector)),
    ] {
        assert_eq!(text.parse(), expected, "{text}");
    }
    for bad in ["newest", "7", "", &"x".repeat(65)] {
        assert_eq!(bad.parse::<Tag>(), Err(NameError::Tag), "{bad}");
    }
}

#[test]
fn a_part_that_is_missing_or_short_is_said() {
    let part = |key: &str| Part {
        key: key.to_owned(),
        bytes: 3,
        digest: String::new(),
    };
    let sizes = HashMap::from([("a".to_owned(), 3), ("b".to_owned(), 2)]);
    let said = |keys: &[&str]| {
        let parts: Vec<Part> = keys.iter().map(|key| part(key)).collect();
        missing_part(&parts, &sizes).map(say_missing)
    };
    assert_eq!(said(&["a"]), None);
    assert_eq!(
        said(&["a", "b"]).as_deref(),
        Some("b has 2 bytes instead of 3")
    );
    assert_eq!(said(&["a", "c"]).as_deref(), Some("c is missing"));
}
