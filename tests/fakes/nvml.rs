//! A libnvidia-ml.so.1 that isn't NVIDIA's: what `gpucell-monitor` asks of it, with the C ABI of nvml.h.
//!
//! What it knows stands in the file `nvml.txt` beside it, a line a GPU or MIG device:
//!
//!     gpu UUID BUS BRAND MAJOR MINOR TOTAL USED LOAD [PID:BYTES[:GI:CI]...]
//!     mig GPU-INDEX UUID GI CI TOTAL USED
//!
//! BRAND is nvml.h's number. Without the file it fails as NVML does without a driver (9). Built by rustc alone
//! as a cdylib.

#![allow(non_snake_case, clippy::missing_safety_doc)]

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::path::PathBuf;

const SUCCESS: c_int = 0;
const INVALID: c_int = 2;
const NOT_SUPPORTED: c_int = 3;
const NOT_FOUND: c_int = 6;
const TOO_SMALL: c_int = 7;
const NOT_LOADED: c_int = 9;

#[derive(Clone)]
struct Line(Vec<String>);

impl Line {
    fn text(&self, at: usize) -> &str {
        self.0.get(at).map_or("", String::as_str)
    }
    fn number(&self, at: usize) -> u64 {
        self.text(at).parse().unwrap_or(0)
    }
    fn is_mig(&self) -> bool {
        self.text(0) == "mig"
    }
}

#[repr(C)]
struct DlInfo {
    file: *const c_char,
    base: *const c_void,
    name: *const c_char,
    address: *const c_void,
}

unsafe extern "C" {
    fn dladdr(address: *const c_void, info: *mut DlInfo) -> c_int;
}

/// The lines beside this library. Handles are pointers to them: they are never freed.
fn lines() -> Option<&'static [Line]> {
    static LINES: std::sync::OnceLock<Option<Vec<Line>>> = std::sync::OnceLock::new();
    let read = || {
        let mut info = DlInfo {
            file: std::ptr::null(),
            base: std::ptr::null(),
            name: std::ptr::null(),
            address: std::ptr::null(),
        };
        // SAFETY: the address of a function of this library, and a structure to fill.
        let own = unsafe {
            if dladdr(nvmlInit_v2 as *const c_void, &mut info) == 0 {
                return None;
            }
            CStr::from_ptr(info.file).to_str().ok()?
        };
        let text = std::fs::read_to_string(PathBuf::from(own).with_file_name("nvml.txt")).ok()?;
        Some(
            text.lines()
                .map(|l| Line(l.split_whitespace().map(str::to_owned).collect()))
                .collect(),
        )
    };
    LINES.get_or_init(read).as_deref()
}

fn gpus() -> impl Iterator<Item = &'static Line> {
    lines().unwrap_or_default().iter().filter(|l| !l.is_mig())
}

/// The line of a handle.
unsafe fn of(device: *mut c_void) -> Option<&'static Line> {
    let all = lines()?;
    all.iter().find(|l| std::ptr::eq(*l, device.cast()))
}

fn handle(line: Option<&'static Line>, out: *mut *mut c_void, missing: c_int) -> c_int {
    match line {
        None => missing,
        Some(line) => put(out, (line as *const Line as *mut Line).cast()),
    }
}

fn put<T>(out: *mut T, value: T) -> c_int {
    // SAFETY: nvml.h: the caller gives a place for it.
    unsafe { out.write(value) };
    SUCCESS
}

fn put_text(out: *mut c_char, length: c_uint, text: &str) -> c_int {
    if text.len() >= length as usize {
        return TOO_SMALL;
    }
    // SAFETY: nvml.h: `length` bytes are there.
    unsafe {
        out.copy_from_nonoverlapping(text.as_ptr().cast(), text.len());
        out.add(text.len()).write(0);
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> c_int {
    if lines().is_some() {
        SUCCESS
    } else {
        NOT_LOADED
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> c_int {
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlSystemGetDriverVersion(out: *mut c_char, length: c_uint) -> c_int {
    put_text(out, length, "550.163.01")
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlSystemGetCudaDriverVersion(out: *mut c_int) -> c_int {
    put(out, 12040)
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlSystemGetCudaDriverVersion_v2(out: *mut c_int) -> c_int {
    put(out, 12040)
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetCount_v2(out: *mut c_uint) -> c_int {
    put(out, gpus().count() as c_uint)
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, out: *mut *mut c_void) -> c_int {
    handle(gpus().nth(index as usize), out, INVALID)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(
    device: *mut c_void,
    out: *mut c_char,
    length: c_uint,
) -> c_int {
    match unsafe { of(device) } {
        None => INVALID,
        Some(l) => put_text(out, length, l.text(if l.is_mig() { 2 } else { 1 })),
    }
}

/// nvmlPciInfo_t.
#[repr(C)]
pub struct PciInfo {
    legacy: [c_char; 16],
    numbers: [c_uint; 5],
    bus_id: [c_char; 32],
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPciInfo_v3(device: *mut c_void, out: *mut PciInfo) -> c_int {
    let Some(l) = (unsafe { of(device) }) else {
        return INVALID;
    };
    let mut info = PciInfo {
        legacy: [0; 16],
        numbers: [0; 5],
        bus_id: [0; 32],
    };
    for (to, from) in info.bus_id.iter_mut().zip(l.text(2).bytes()) {
        *to = from as c_char;
    }
    put(out, info)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetBrand(device: *mut c_void, out: *mut c_uint) -> c_int {
    match unsafe { of(device) } {
        None => INVALID,
        Some(l) => put(out, l.number(3) as c_uint),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCudaComputeCapability(
    device: *mut c_void,
    major: *mut c_int,
    minor: *mut c_int,
) -> c_int {
    match unsafe { of(device) } {
        None => INVALID,
        Some(l) => put(major, l.number(4) as c_int) | put(minor, l.number(5) as c_int),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo(
    device: *mut c_void,
    out: *mut [c_ulonglong; 3],
) -> c_int {
    let Some(l) = (unsafe { of(device) }) else {
        return INVALID;
    };
    let at = if l.is_mig() { 5 } else { 6 };
    let (total, used) = (l.number(at), l.number(at + 1));
    put(out, [total, total - used, used])
}

/// nvmlMemory_v2_t.
#[repr(C)]
pub struct MemoryV2 {
    version: c_uint,
    total: c_ulonglong,
    reserved: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

/// Of whole GPUs only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(
    device: *mut c_void,
    out: *mut MemoryV2,
) -> c_int {
    let line = unsafe { of(device) };
    let Some(l) = line.filter(|l| !l.is_mig()) else {
        return NOT_SUPPORTED;
    };
    // SAFETY: nvml.h: the caller has written the version.
    let version = unsafe { (*out).version };
    if version != 0x0200_0000 | size_of::<MemoryV2>() as c_uint {
        return INVALID;
    }
    let (total, used) = (l.number(6), l.number(7));
    let info = MemoryV2 {
        version,
        total,
        reserved: 0,
        free: total - used,
        used,
    };
    put(out, info)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUtilizationRates(
    device: *mut c_void,
    out: *mut [c_uint; 2],
) -> c_int {
    match unsafe { of(device) } {
        None => INVALID,
        Some(l) => put(out, [l.number(8) as c_uint, 7]),
    }
}

/// nvmlProcessInfo_t.
#[repr(C)]
pub struct ProcessInfo {
    pid: c_uint,
    memory: c_ulonglong,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: *mut c_void,
    count: *mut c_uint,
    out: *mut ProcessInfo,
) -> c_int {
    let Some(l) = (unsafe { of(device) }) else {
        return INVALID;
    };
    let processes = l.0.get(9..).unwrap_or_default();
    // SAFETY: nvml.h: `count` holds how many there is room for.
    let room = unsafe { count.read() } as usize;
    put(count, processes.len() as c_uint);
    if room < processes.len() {
        return TOO_SMALL;
    }
    for (i, text) in processes.iter().enumerate() {
        let words: Vec<&str> = text.split(':').collect();
        let number = |at: usize| words.get(at).and_then(|w| w.parse::<u64>().ok());
        let info = ProcessInfo {
            pid: number(0).unwrap_or(0) as c_uint,
            memory: number(1).unwrap_or(0),
            gpu_instance: number(2).map_or(c_uint::MAX, |n| n as c_uint),
            compute_instance: number(3).map_or(c_uint::MAX, |n| n as c_uint),
        };
        // SAFETY: there is room for it.
        unsafe { out.add(i).write(info) };
    }
    SUCCESS
}

fn parts(device: *mut c_void) -> impl Iterator<Item = &'static Line> {
    // SAFETY: only compared.
    let index = unsafe { of(device) }.and_then(|l| gpus().position(|g| std::ptr::eq(g, l)));
    let all = lines().unwrap_or_default().iter().filter(|l| l.is_mig());
    all.filter(move |l| Some(l.number(1) as usize) == index)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigMode(
    device: *mut c_void,
    current: *mut c_uint,
    pending: *mut c_uint,
) -> c_int {
    let on = c_uint::from(parts(device).next().is_some());
    put(current, on) | put(pending, on)
}

/// As of a GPU of seven slices.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMaxMigDeviceCount(
    _device: *mut c_void,
    out: *mut c_uint,
) -> c_int {
    put(out, 7)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(
    device: *mut c_void,
    index: c_uint,
    out: *mut *mut c_void,
) -> c_int {
    // The first place is empty: indexes have gaps.
    let at = (index as usize).checked_sub(1);
    handle(at.and_then(|at| parts(device).nth(at)), out, NOT_FOUND)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGpuInstanceId(
    device: *mut c_void,
    out: *mut c_uint,
) -> c_int {
    match unsafe { of(device) } {
        None => INVALID,
        Some(l) => put(out, l.number(3) as c_uint),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeInstanceId(
    device: *mut c_void,
    out: *mut c_uint,
) -> c_int {
    match unsafe { of(device) } {
        None => INVALID,
        Some(l) => put(out, l.number(4) as c_uint),
    }
}
