//! The device programs that are loaded in this kernel.

use gpucell::sys::bpf::{instructions, program_by_id};

/// The ids of the programs that compare with `number`: one that the test gives its own cells, so that
/// they are told from those of others.
pub fn with_number(number: i32) -> Vec<u32> {
    const BPF_PROG_GET_NEXT_ID: libc::c_int = 11;
    let ours = |id| {
        let code = program_by_id(id).and_then(|p| instructions(&p));
        code.is_ok_and(|code| code.iter().any(|i| i.imm == number))
    };
    let mut found = Vec::new();
    let mut attr = [0u32; 32];
    loop {
        // SAFETY: the attribute is a live, writable buffer of the size passed, without pointers.
        let r = unsafe {
            let size = size_of_val(&attr);
            libc::syscall(libc::SYS_bpf, BPF_PROG_GET_NEXT_ID, attr.as_mut_ptr(), size)
        };
        if r != 0 {
            let e = std::io::Error::last_os_error();
            assert_eq!(e.raw_os_error(), Some(libc::ENOENT), "{e}");
            return found;
        }
        attr[0] = attr[1]; // start_id = next_id
        if ours(attr[0]) {
            found.push(attr[0]);
        }
    }
}
