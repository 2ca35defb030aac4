//! Tables of cases: all that are wrong are told at once.

/// Fails when rows were wrong; each is a text of its own.
pub fn none_is(wrong: &[String]) {
    assert!(
        wrong.is_empty(),
        "{} rows:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
