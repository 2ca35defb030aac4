//! Printing: standard output that ends quietly when the reader has gone, and stable JSON.

use std::io::Write;

use serde::Serialize;
use serde_json::Value;

use crate::{Error, Result};

/// Writes to standard output. A closed pipe (`gpucell doctor | head -1`) is no error.
///
/// # Errors
/// Any other failed write.
pub fn print(text: &str) -> Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::step("write", "standard output", e))
        }
        _ => Ok(()),
    }
}

/// Pretty JSON with a line end.
///
/// # Errors
/// A value that JSON can't hold.
pub fn pretty(value: &impl Serialize) -> Result<String> {
    let mut text =
        serde_json::to_string_pretty(value).map_err(|e| Error::msg(format!("JSON: {e}")))?;
    text.push('\n');
    Ok(text)
}

/// A configuration as JSON in an order that is the same on every run: oci-spec keeps capability sets
/// and maps in hash order.
///
/// # Errors
/// A value that JSON can't hold.
pub fn stable(value: &impl Serialize) -> Result<Value> {
    let mut value = serde_json::to_value(value).map_err(|e| Error::msg(format!("JSON: {e}")))?;
    // Capability sets are sets; every other list's order means something.
    if let Some(Value::Object(caps)) = value.pointer_mut("/process/capabilities") {
        for set in caps.values_mut().filter_map(Value::as_array_mut) {
            set.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
        }
    }
    for map in [
        "/annotations",
        "/linux/sysctl",
        "/linux/netDevices",
        "/linux/timeOffsets",
        "/linux/resources/unified",
        "/linux/resources/rdma",
    ] {
        if let Some(Value::Object(map)) = value.pointer_mut(map) {
            map.sort_keys();
        }
    }
    Ok(value)
}
