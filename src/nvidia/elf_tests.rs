use super::*;
use std::io::Write;
use std::process::Command;

fn file(bytes: &[u8]) -> File {
    let mut f = tempfile::tempfile().unwrap();
    f.write_all(bytes).unwrap();
    f
}

fn library(args: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (src, out) = (dir.path().join("x.c"), dir.path().join("x.so"));
    std::fs::write(&src, "int x(void) { return 1; }\n").unwrap();
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-nostdlib"]).args(args);
    let status = cc.arg("-o").arg(&out).arg(&src).status().unwrap();
    assert!(status.success());
    std::fs::read(out).unwrap()
}

/// A file without segments whose only content is NVIDIA's note, as the stubs of their own tests.
fn with_note(name: &[u8], text: &[u8], text_len: usize) -> Vec<u8> {
    let mut note = Vec::new();
    for n in [name.len(), text_len, 0] {
        note.extend((n as u32).to_le_bytes());
    }
    note.extend(name);
    note.resize(note.len().next_multiple_of(4), 0);
    note.extend(text);
    let names = b"\0.note.cuda.fwd_compatibility\0.shstrtab\0";
    let mut out = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let (note_at, names_at) = (64, 64 + note.len());
    let sections_at = names_at + names.len();
    out.extend(ET_DYN.to_le_bytes());
    out.extend(EM_X86_64.to_le_bytes());
    out.extend(1u32.to_le_bytes());
    for n in [0u64, 0, sections_at as u64] {
        out.extend(n.to_le_bytes());
    }
    out.extend(0u32.to_le_bytes());
    for n in [64u16, 0, 0, 64, 3, 2] {
        out.extend(n.to_le_bytes());
    }
    out.extend(&note);
    out.extend(names);
    let mut section = |name: u32, kind: u32, at: usize, len: usize| {
        out.extend(name.to_le_bytes());
        out.extend(kind.to_le_bytes());
        for n in [0, 0, at as u64, len as u64] {
            out.extend(n.to_le_bytes());
        }
        out.extend([0; 8]);
        for n in [4u64, 0] {
            out.extend(n.to_le_bytes());
        }
    };
    section(0, 0, 0, 0);
    section(1, 7, note_at, note.len());
    section(30, 3, names_at, names.len());
    out
}

const NOTE: &[u8] =
    br#"{"format":1,"CUDA version":"12.9","driver":[535,550,575],"device":[1,2,7]}"#;

#[test]
fn reads_what_the_linker_wrote() {
    let elf = Elf::read(&file(&library(&["-Wl,-soname,libx.so.7"])))
        .unwrap()
        .unwrap();
    assert_eq!(elf.soname.as_deref(), Some("libx.so.7"));
    assert_eq!(elf.kind, ET_DYN);
    assert!(elf.dynamic && !elf.interpreter);
    let own = Elf::read(&File::open("/proc/self/exe").unwrap())
        .unwrap()
        .unwrap();
    assert_eq!((elf.class, elf.machine), (own.class, own.machine));
    let none = Elf::read(&file(&library(&[]))).unwrap().unwrap();
    assert_eq!(none.soname, None);
}

#[test]
fn a_soname_that_is_no_file_name_is_none() {
    for bad in ["../up.so", "a/b", ".."] {
        let flag = format!("-Wl,-soname,{bad}");
        let elf = Elf::read(&file(&library(&[&flag]))).unwrap().unwrap();
        assert_eq!(elf.soname, None, "{bad}");
    }
    let long = format!("-Wl,-soname,{}", "l".repeat(256));
    assert_eq!(
        Elf::read(&file(&library(&[&long])))
            .unwrap()
            .unwrap()
            .soname,
        None
    );
}

#[test]
fn what_is_no_elf_file_is_none() {
    for bytes in [&b""[..], b"\x7fELF", b"#!/bin/sh\n", &[0; 64]] {
        assert_eq!(Elf::read(&file(bytes)).unwrap(), None);
        assert_eq!(Compat::read(&file(bytes)).unwrap(), None);
    }
}

#[test]
fn the_note_names_the_drivers() {
    let got = Compat::read(&file(&with_note(b"NVIDIA Corporation\0", NOTE, NOTE.len())));
    let compat = got.unwrap().unwrap();
    assert_eq!(compat.cuda, "12.9");
    assert_eq!(compat.drivers, [535, 550, 575]);
    // One byte longer than the section, and without drivers: CUDA 13.2 for Orin.
    let text = br#"{"format":1,"CUDA version":"13.2"}"#;
    let got = Compat::read(&file(&with_note(
        b"NVIDIA Corporation\0",
        text,
        text.len() + 7,
    )));
    assert_eq!(got.unwrap().unwrap().drivers, [0; 0]);
}

#[test]
fn a_note_that_says_nothing_is_none() {
    let cases: [(&[u8], &[u8]); 4] = [
        (b"GNU\0", NOTE),
        (b"NVIDIA Corporation\0", b"{\"format\":1,}"),
        (b"NVIDIA Corporation\0", b""),
        (b"NVIDIA Corporation\0", b"\xff\xfe"),
    ];
    for (name, text) in cases {
        assert_eq!(
            Compat::read(&file(&with_note(name, text, text.len()))).unwrap(),
            None
        );
    }
    assert_eq!(Compat::read(&file(&library(&[]))).unwrap(), None);
}

#[test]
fn no_truncation_and_no_flipped_byte_panics() {
    let whole = library(&["-Wl,-soname,libx.so.7"]);
    let noted = with_note(b"NVIDIA Corporation\0", NOTE, NOTE.len());
    for bytes in [whole, noted] {
        for end in 0..bytes.len().min(2048) {
            let f = file(&bytes[..end]);
            Elf::read(&f).unwrap();
            Compat::read(&f).unwrap();
        }
        for at in 0..bytes.len().min(1024) {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0xff;
            let f = file(&bytes);
            Elf::read(&f).unwrap();
            Compat::read(&f).unwrap();
        }
    }
}
