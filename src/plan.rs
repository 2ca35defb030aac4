//! The Plan: a checked Spec lowered into flat lists of typed steps.
