use std::io::BufReader;

use super::pax::time;
use super::*;

/// One header block with its checksum.
fn block(kind: u8, name: &[u8], size: u64, change: impl Fn(&mut [u8; 512])) -> Vec<u8> {
    let mut b = [0u8; 512];
    b[..name.len()].copy_from_slice(name);
    b[100..108].copy_from_slice(b"0000644\0");
    b[108..116].copy_from_slice(b"0000000\0");
    b[116..124].copy_from_slice(b"0000000\0");
    b[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    b[136..148].copy_from_slice(b"14524770400\0");
    b[156] = kind;
    b[257..265].copy_from_slice(b"ustar\x0000");
    change(&mut b);
    b[148..156].fill(b' ');
    let sum: u32 = b.iter().map(|&b| u32::from(b)).sum();
    b[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    b.to_vec()
}

fn padded(data: &[u8]) -> Vec<u8> {
    let mut out = data.to_vec();
    out.resize(data.len().div_ceil(512) * 512, 0);
    out
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut text = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length.to_string().len() + rest != length {
            length = length.to_string().len() + rest;
        }
        text.extend_from_slice(format!("{length} {key}=").as_bytes());
        text.extend_from_slice(value);
        text.push(b'\n');
    }
    let mut out = block(b'x', b"pax", text.len() as u64, |_| {});
    out.extend(padded(&text));
    out
}

/// All entries with their stored data.
fn read(archive: &[u8]) -> io::Result<Vec<(Entry, Vec<u8>)>> {
    let mut reader = Reader::new(archive);
    let mut out = Vec::new();
    while reader.advance()? {
        let entry = reader.entry().clone();
        let mut data = Vec::new();
        loop {
            let piece = reader.data()?;
            let n = piece.len();
            if n == 0 {
                break;
            }
            data.extend_from_slice(piece);
            reader.consume(n);
        }
        out.push((entry, data));
    }
    Ok(out)
}

fn error(archive: &[u8]) -> String {
    read(archive).unwrap_err().to_string()
}

#[test]
fn what_the_tar_crate_writes() {
    let mut builder = ::tar::Builder::new(Vec::new());
    let long = format!("{}/{}", "d".repeat(150), "f".repeat(120));
    for (path, data) in [("plain", "one"), (long.as_str(), "two")] {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o4755);
        header.set_uid(12);
        header.set_gid(0o7777777 + 1);
        header.set_mtime(1_234_567_890);
        builder
            .append_data(&mut header, path, data.as_bytes())
            .unwrap();
    }
    let mut header = ::tar::Header::new_gnu();
    header.set_entry_type(::tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "link", &long).unwrap();
    let all = read(&builder.into_inner().unwrap()).unwrap();
    assert_eq!(all.len(), 3);
    assert_eq!(all[0].0.path, b"plain");
    assert_eq!(
        (all[0].0.mode, all[0].0.uid, all[0].0.gid),
        (0o4755, 12, 0o10000000)
    );
    assert_eq!(all[0].0.mtime, (1_234_567_890, 0));
    assert_eq!(all[0].1, b"one");
    assert_eq!(all[1].0.path, long.as_bytes());
    assert_eq!(all[1].1, b"two");
    assert_eq!(
        (all[2].0.kind, &all[2].0.link[..]),
        (Kind::Symlink, long.as_bytes())
    );
}

#[test]
fn pax_headers_override() {
    let mut archive = pax(&[
        ("path", b"new/name"),
        ("mtime", b"1700000000.25"),
        ("uid", b"4000000000"),
        ("size", b"5"),
        ("SCHILY.xattr.user.a", b"with\nnewline and = sign"),
        ("comment", b"ignored"),
    ]);
    // The header's own size is wrong; the extended one counts.
    archive.extend(block(b'0', b"old", 0, |_| {}));
    archive.extend(padded(b"hello"));
    archive.extend(block(b'0', b"next", 0, |_| {}));
    let all = read(&archive).unwrap();
    let (entry, data) = &all[0];
    assert_eq!(entry.path, b"new/name");
    assert_eq!(
        (entry.mtime, entry.uid),
        ((1_700_000_000, 250_000_000), 4_000_000_000)
    );
    assert_eq!(
        entry.xattrs,
        [(b"user.a".to_vec(), b"with\nnewline and = sign".to_vec())]
    );
    assert_eq!(data, b"hello");
    // Extended headers are for one entry.
    assert_eq!(all[1].0.path, b"next");
    assert!(all[1].0.xattrs.is_empty());
}

#[test]
fn times_and_numbers() {
    assert_eq!(time(b"12"), Some((12, 0)));
    assert_eq!(time(b"12.5"), Some((12, 500_000_000)));
    assert_eq!(time(b"12.1234567899"), Some((12, 123_456_789)));
    assert_eq!(time(b"-1"), Some((-1, 0)));
    assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
    for wrong in [
        &b""[..],
        b".",
        b"x",
        b"1.x",
        b"--1",
        b"99999999999999999999",
    ] {
        assert_eq!(time(wrong), None);
    }
    assert_eq!(signed(b"0000644\0", "n").unwrap(), 0o644);
    assert_eq!(signed(b"   644 \0", "n").unwrap(), 0o644);
    assert_eq!(signed(b"\0\0\0\0", "n").unwrap(), 0);
    assert_eq!(signed(&[0x80, 0, 0, 0, 1, 0], "n").unwrap(), 256);
    assert_eq!(signed(&[0xff, 0xff, 0xff, 0xfe], "n").unwrap(), -2);
    assert!(
        signed(
            &[0xbf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            "n"
        )
        .is_err()
    );
    assert!(signed(b"12x", "n").is_err());
}

#[test]
fn sparse_files_of_all_formats() {
    let map = [(0u64, 3u64), (1024, 2)];
    let want = |archive: Vec<u8>, name: &[u8]| {
        let all = read(&archive).unwrap();
        assert_eq!(all.len(), 2, "{}", show(name));
        assert_eq!(all[0].0.path, name);
        assert_eq!(all[0].0.sparse.as_deref(), Some(&map[..]));
        assert_eq!(all[0].0.size, 4096);
        assert_eq!(all[0].1, b"abcde");
        assert_eq!(all[1].0.path, b"next");
    };
    let next = block(b'0', b"next", 0, |_| {});

    let octal = |b: &mut [u8; 512], at: usize, value: u64| {
        b[at..at + 12].copy_from_slice(format!("{value:011o}\0").as_bytes());
    };
    let mut old = block(b'S', b"old-gnu", 5, |b| {
        for (i, (offset, len)) in map.into_iter().enumerate() {
            octal(b, 386 + i * 24, offset);
            octal(b, 398 + i * 24, len);
        }
        octal(b, 483, 4096);
    });
    old.extend(padded(b"abcde"));
    old.extend(&next);
    want(old, b"old-gnu");

    // The map goes on in extension blocks.
    let mut long = block(b'S', b"long-gnu", 5, |b| {
        octal(b, 386, 0);
        octal(b, 398, 3);
        b[482] = 1;
        octal(b, 483, 4096);
    });
    let mut more = [0u8; 512];
    octal(&mut more, 0, 1024);
    octal(&mut more, 12, 2);
    long.extend(more);
    long.extend(padded(b"abcde"));
    long.extend(&next);
    want(long, b"long-gnu");

    let mut v00 = pax(&[
        ("GNU.sparse.size", b"4096"),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.offset", b"0"),
        ("GNU.sparse.numbytes", b"3"),
        ("GNU.sparse.offset", b"1024"),
        ("GNU.sparse.numbytes", b"2"),
    ]);
    v00.extend(block(b'0', b"v00", 5, |_| {}));
    v00.extend(padded(b"abcde"));
    v00.extend(&next);
    want(v00, b"v00");

    let mut v01 = pax(&[
        ("GNU.sparse.name", b"v01"),
        ("GNU.sparse.size", b"4096"),
        ("GNU.sparse.map", b"0,3,1024,2"),
    ]);
    v01.extend(block(b'0', b"GNUSparseFile.0/v01", 5, |_| {}));
    v01.extend(padded(b"abcde"));
    v01.extend(&next);
    want(v01, b"v01");

    let mut v10 = pax(&[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"v10"),
        ("GNU.sparse.realsize", b"4096"),
    ]);
    v10.extend(block(b'0', b"GNUSparseFile.0/v10", 512 + 5, |_| {}));
    v10.extend(padded(b"2\n0\n3\n1024\n2\n"));
    v10.extend(padded(b"abcde"));
    v10.extend(&next);
    want(v10, b"v10");
}

#[test]
fn wrong_sparse_maps() {
    let with = |map: &[u8], size: &[u8]| {
        let mut archive = pax(&[("GNU.sparse.map", map), ("GNU.sparse.size", size)]);
        archive.extend(block(b'0', b"f", 5, |_| {}));
        archive.extend(padded(b"abcde"));
        error(&archive)
    };
    for map in [
        &b"0,3,2,2"[..],
        b"0,3",
        b"0,3,1024",
        b"18446744073709551615,5",
        b"0,x",
    ] {
        assert!(with(map, b"4096").contains("sparse map"), "{}", show(map));
    }
    assert!(with(b"0,5", b"4").contains("sparse map"));
    assert!(with(b"0,5", b"18446744073709551615").contains("sparse map"));
}

#[test]
fn damaged_archives() {
    let good = block(b'0', b"f", 5, |_| {});
    let mut flipped = good.clone();
    flipped[0] = b'g';
    assert!(error(&flipped).contains("wrong header checksum"));
    assert!(error(&good).contains("cut off"));
    assert!(error(&good[..100]).contains("cut off"));
    assert!(error(&block(b'0', b"f", 0, |b| b[100] = b'x')).contains("mode is not a number"));
    assert!(error(&block(b'D', b"f", 0, |_| {})).contains("entry type 'D'"));
    assert!(error(&block(b'x', b"f", 1 << 30, |_| {})).contains("an extended header of"));
    for text in [
        &b"5 a=b\n"[..],
        b"99 a=b\n",
        b"x a=b\n",
        b"6 ab\n",
        b"6 a=bc",
        b"0 a=b\n",
    ] {
        let mut archive = block(b'x', b"pax", text.len() as u64, |_| {});
        archive.extend(padded(text));
        archive.extend(block(b'0', b"f", 0, |_| {}));
        assert!(error(&archive).contains("malformed"), "{}", show(text));
    }
    // An extended header with nothing behind it.
    assert!(error(&pax(&[("path", b"x")])).contains("cut off"));
    let minus = pax(&[("uid", b"4294967295")]);
    let archive = [minus, block(b'0', b"f", 0, |_| {})].concat();
    assert!(error(&archive).contains("not a 32-bit id"));
    assert!(read(&[0u8; 1024]).unwrap().is_empty());
    assert!(read(&[]).unwrap().is_empty());
}

#[test]
fn old_archives() {
    let v7 = block(b'\0', b"dir/", 0, |b| b[257..265].fill(0));
    assert_eq!(read(&v7).unwrap()[0].0.kind, Kind::Directory);
    let prefixed = block(b'0', b"name", 0, |b| b[345..351].copy_from_slice(b"prefix"));
    assert_eq!(read(&prefixed).unwrap()[0].0.path, b"prefix/name");
    // GNU archives keep other things where ustar has its prefix.
    let gnu = block(b'0', b"name", 0, |b| {
        b[257..265].copy_from_slice(b"ustar  \0");
        b[345..351].copy_from_slice(b"123456");
    });
    assert_eq!(read(&gnu).unwrap()[0].0.path, b"name");
}

#[test]
fn files_are_skipped_by_seeking() {
    let mut archive = block(b'0', b"a", 700, |_| {});
    archive.extend(padded(&[1; 700]));
    archive.extend(block(b'0', b"b", 0, |_| {}));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.tar");
    std::fs::write(&path, &archive).unwrap();
    let file = std::fs::File::open(path).unwrap();
    let mut reader = Reader::new(BufReader::new(file));
    assert!(reader.advance().unwrap());
    assert_eq!(reader.offset(), 512);
    assert!(reader.advance().unwrap());
    assert_eq!(reader.entry().path, b"b");
    assert!(!reader.advance().unwrap());
}
