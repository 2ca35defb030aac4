//! placeholder
use crate::Result;
/// Program
#[derive(Debug, Clone)]
pub struct Program {
    /// x
    pub insns: Vec<libc::sock_filter>,
    /// x
    pub flags: u32,
    /// x
    pub notify: Option<Notify>,
    /// x
    pub warnings: Vec<String>,
}
/// Notify
#[derive(Debug, Clone)]
pub struct Notify {
    /// x
    pub listener_path: std::path::PathBuf,
    /// x
    pub metadata: Option<String>,
}
/// x
pub fn compile(_spec: &oci_spec::runtime::LinuxSeccomp) -> Result<Program> {
    Ok(Program {
        insns: vec![],
        flags: 0,
        notify: None,
        warnings: vec![],
    })
}
