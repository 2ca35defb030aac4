//! The few facts of an ELF file that placement needs: class, machine, type, SONAME, one CUDA note.
//!
//! Owns bounded reads of files that nobody vouches for (an image's libraries among them): every
//! offset and size comes from the file and is checked, nothing is mapped, nothing is executed.
//! Must not open anything by path.

use elf::abi;
use elf::dynamic::DynamicTable;
use elf::endian::AnyEndian;
use elf::file::{Class as RawClass, FileHeader, parse_ident};
use elf::section::SectionHeaderTable;
use elf::segment::{ProgramHeader, SegmentTable};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

pub use elf::abi::{EM_386, EM_AARCH64, EM_ARM, EM_X86_64, ET_DYN, ET_EXEC};

/// Most bytes read of one table (program headers, dynamic section, section headers, notes).
/// NVIDIA's largest library has a dynamic section of 1 KiB and 40 sections.
const TABLE_MAX: u64 = 256 << 10;
/// NAME_MAX: a SONAME is the name of a file.
const SONAME_MAX: u64 = 255;
/// The largest note read; the real ones have less than 200 bytes.
const NOTE_MAX: u64 = 64 << 10;
/// The section that says which host drivers a forward compatibility library works with.
const COMPAT_SECTION: &[u8] = b".note.cuda.fwd_compatibility";

/// Address size of the file's code (EI_CLASS).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Class {
    /// ELFCLASS32.
    Bits32,
    /// ELFCLASS64.
    Bits64,
}

/// What an ELF file says of itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Elf {
    /// 32 or 64 bit.
    pub class: Class,
    /// EM_* (elf.h).
    pub machine: u16,
    /// ET_* (elf.h); a shared library is ET_DYN, and so is a position independent program.
    pub kind: u16,
    /// e_flags, which tells ARM's floating point ABIs apart.
    pub flags: u32,
    /// It names a dynamic loader (PT_INTERP): a program, unless it is libc itself.
    pub interpreter: bool,
    /// It has a dynamic section: the loader can use it.
    pub dynamic: bool,
    /// DT_SONAME, where it can be a file name.
    pub soname: Option<String>,
}

/// What `.note.cuda.fwd_compatibility` says: the library belongs to a forward compatibility package.
#[derive(Clone, Debug, Default, Eq, PartialEq, serde::Deserialize)]
pub struct Compat {
    /// CUDA version the library implements, as `12.9`.
    #[serde(rename = "CUDA version", default)]
    pub cuda: String,
    /// Major versions of the host drivers it works on. A package for Tegra names none.
    #[serde(rename = "driver", default)]
    pub drivers: Vec<u32>,
}

/// The start of a file, where its program headers nearly always are too.
const HEAD: usize = 1024;

struct Header<'a> {
    file: &'a File,
    head: [u8; HEAD],
    head_len: usize,
    raw: FileHeader<AnyEndian>,
}

impl Elf {
    /// Reads the headers of an open file; none when it is no ELF file or a broken one, which a
    /// dynamic loader would refuse too.
    ///
    /// # Errors
    /// What pread(2) says.
    pub fn read(file: &File) -> io::Result<Option<Elf>> {
        let Some(header) = Header::read(file)? else {
            return Ok(None);
        };
        let Some(segments) = header.segments()? else {
            return Ok(None);
        };
        let dynamic = segments.iter().find(|s| s.p_type == abi::PT_DYNAMIC);
        let soname = match dynamic {
            Some(segment) => header.soname(segment, &segments)?,
            None => None,
        };
        Ok(Some(Elf {
            class: match header.raw.class {
                RawClass::ELF32 => Class::Bits32,
                RawClass::ELF64 => Class::Bits64,
            },
            machine: header.raw.e_machine,
            kind: header.raw.e_type,
            flags: header.raw.e_flags,
            interpreter: segments.iter().any(|s| s.p_type == abi::PT_INTERP),
            dynamic: dynamic.is_some(),
            soname,
        }))
    }
}

impl Compat {
    /// Reads the note of an open libcuda; none when it has none, or one that says nothing.
    ///
    /// # Errors
    /// What pread(2) says.
    pub fn read(file: &File) -> io::Result<Option<Compat>> {
        let Some(header) = Header::read(file)? else {
            return Ok(None);
        };
        let Some(note) = header.section(COMPAT_SECTION)? else {
            return Ok(None);
        };
        Ok(note_text(&note, header.raw.endianness).and_then(|t| serde_json::from_slice(t).ok()))
    }
}

/// The description of the one note in the section (elf(5), Notes: three 32-bit words, then the name,
/// padded to four bytes, then the description), if it is NVIDIA's. The note of some Tegra packages
/// claims a byte more than the section has.
fn note_text(note: &[u8], endian: AnyEndian) -> Option<&[u8]> {
    use elf::endian::EndianParse;
    let mut at = 0;
    let name_len = endian.parse_u32_at(&mut at, note).ok()? as usize;
    let text_len = endian.parse_u32_at(&mut at, note).ok()? as usize;
    endian.parse_u32_at(&mut at, note).ok()?;
    let rest = note.get(at..)?;
    let name = rest.get(..name_len)?;
    if name.split(|b| *b == 0).next() != Some(b"NVIDIA Corporation") {
        return None;
    }
    let text = rest.get(name_len.checked_next_multiple_of(4)?..)?;
    let text = &text[..text_len.min(text.len())];
    text.split(|b| *b == 0).next()
}

impl<'a> Header<'a> {
    fn read(file: &'a File) -> io::Result<Option<Self>> {
        let mut head = [0u8; HEAD];
        let head_len = read_some(file, &mut head, 0)?;
        let Some((ident, tail)) = head[..head_len].split_at_checked(abi::EI_NIDENT) else {
            return Ok(None);
        };
        let Ok(ident) = parse_ident::<AnyEndian>(ident) else {
            return Ok(None);
        };
        let Ok(raw) = FileHeader::parse_tail(ident, tail) else {
            return Ok(None);
        };
        Ok(Some(Header {
            file,
            head,
            head_len,
            raw,
        }))
    }

    /// A range of the file; none when it isn't in the file or is larger than allowed.
    fn range(&self, at: u64, len: u64, max: u64) -> io::Result<Option<Vec<u8>>> {
        let bytes = self.up_to(at, len, max)?;
        Ok(bytes.filter(|b| b.len() as u64 == len))
    }

    /// The same, as far as the file goes.
    fn up_to(&self, at: u64, len: u64, max: u64) -> io::Result<Option<Vec<u8>>> {
        // What pread(2) takes as an offset.
        if len > max || at > i64::MAX as u64 - max {
            return Ok(None);
        }
        let end = at.saturating_add(len);
        if end <= self.head_len as u64 {
            return Ok(Some(self.head[at as usize..end as usize].to_vec()));
        }
        let mut buf = vec![0; len as usize];
        let n = read_some(self.file, &mut buf, at)?;
        buf.truncate(n);
        Ok(Some(buf))
    }

    fn segments(&self) -> io::Result<Option<Vec<ProgramHeader>>> {
        let raw = &self.raw;
        let size = match raw.class {
            RawClass::ELF32 => 32,
            RawClass::ELF64 => 56,
        };
        if raw.e_phnum == 0 {
            return Ok(Some(Vec::new()));
        }
        if raw.e_phentsize != size {
            return Ok(None);
        }
        let len = u64::from(raw.e_phnum) * u64::from(size);
        let Some(bytes) = self.range(raw.e_phoff, len, TABLE_MAX)? else {
            return Ok(None);
        };
        let table = SegmentTable::new(raw.endianness, raw.class, &bytes);
        Ok(Some(table.iter().collect()))
    }

    /// DT_SONAME: an offset into the table at the address DT_STRTAB, of DT_STRSZ bytes.
    fn soname(
        &self,
        dynamic: &ProgramHeader,
        segments: &[ProgramHeader],
    ) -> io::Result<Option<String>> {
        let Some(bytes) = self.range(dynamic.p_offset, dynamic.p_filesz, TABLE_MAX)? else {
            return Ok(None);
        };
        let (mut name, mut table, mut size) = (None, None, None);
        for d in DynamicTable::new(self.raw.endianness, self.raw.class, &bytes).iter() {
            match d.d_tag {
                abi::DT_NULL => break,
                abi::DT_SONAME => name = Some(d.d_val()),
                abi::DT_STRTAB => table = Some(d.d_ptr()),
                abi::DT_STRSZ => size = Some(d.d_val()),
                _ => {}
            }
        }
        let (Some(name), Some(table), Some(size)) = (name, table, size) else {
            return Ok(None);
        };
        let Some(table) = file_offset(segments, table) else {
            return Ok(None);
        };
        let (Some(left), Some(at)) = (size.checked_sub(name), table.checked_add(name)) else {
            return Ok(None);
        };
        let len = left.min(SONAME_MAX + 1);
        let Some(text) = self.up_to(at, len, SONAME_MAX + 1)? else {
            return Ok(None);
        };
        Ok(file_name(&text))
    }

    /// The bytes of a SHT_NOTE section.
    fn section(&self, wanted: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let raw = &self.raw;
        let size = match raw.class {
            RawClass::ELF32 => 40,
            RawClass::ELF64 => 64,
        };
        if raw.e_shentsize != size || raw.e_shnum == 0 {
            return Ok(None);
        }
        let len = u64::from(raw.e_shnum) * u64::from(size);
        let Some(bytes) = self.range(raw.e_shoff, len, TABLE_MAX)? else {
            return Ok(None);
        };
        let table = SectionHeaderTable::new(raw.endianness, raw.class, &bytes);
        let Ok(names) = table.get(raw.e_shstrndx.into()) else {
            return Ok(None);
        };
        let Some(names) = self.range(names.sh_offset, names.sh_size, TABLE_MAX)? else {
            return Ok(None);
        };
        for section in table.iter() {
            let name = names.get(section.sh_name as usize..).unwrap_or_default();
            let name = name.split(|b| *b == 0).next().unwrap_or_default();
            if section.sh_type == abi::SHT_NOTE && name == wanted {
                return self.range(section.sh_offset, section.sh_size, NOTE_MAX);
            }
        }
        Ok(None)
    }
}

/// Where the byte that is loaded at an address lies in the file.
fn file_offset(segments: &[ProgramHeader], address: u64) -> Option<u64> {
    segments.iter().find_map(|s| {
        let into = address.checked_sub(s.p_vaddr)?;
        if s.p_type != abi::PT_LOAD || into >= s.p_filesz {
            return None;
        }
        s.p_offset.checked_add(into)
    })
}

/// The C string at the start, if it can name a file in a directory.
fn file_name(text: &[u8]) -> Option<String> {
    let end = text.iter().position(|b| *b == 0)?;
    let name = std::str::from_utf8(&text[..end]).ok()?;
    let plain = !name.is_empty()
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c == '/' || c.is_control());
    plain.then(|| name.to_owned())
}

/// pread(2); a regular file gives less than asked only at its end.
fn read_some(file: &File, buf: &mut [u8], at: u64) -> io::Result<usize> {
    loop {
        match file.read_at(buf, at) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

#[cfg(test)]
#[path = "elf_tests.rs"]
mod tests;
