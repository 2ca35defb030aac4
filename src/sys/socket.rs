//! The sequenced-packet socket between parent and child, and descriptor passing.

use super::{Sys, check};
use nix::errno::Errno;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// socketpair(2), AF_UNIX, SOCK_SEQPACKET, close-on-exec.
pub fn pair() -> Sys<(OwnedFd, OwnedFd)> {
    let mut fds: [RawFd; 2] = [-1; 2];
    // SAFETY: fds is valid for two elements.
    check(
        unsafe {
            libc::socketpair(
                libc::AF_UNIX,
                libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC,
                0,
                fds.as_mut_ptr(),
            )
        }
        .into(),
    )?;
    // SAFETY: two new descriptors.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

/// Room for the control messages of one descriptor and one sender.
const CONTROL: usize = 64;

#[repr(align(8))]
struct Control([u8; CONTROL]);

/// sendmsg(2) of one packet with at most one descriptor; no SIGPIPE.
pub fn send(sock: BorrowedFd, data: &[u8], fd: Option<BorrowedFd>) -> Sys<()> {
    let mut iov = libc::iovec {
        iov_base: data.as_ptr().cast_mut().cast(),
        iov_len: data.len(),
    };
    let mut control = Control([0; CONTROL]);
    // SAFETY: zero is a valid msghdr.
    let mut msg: libc::msghdr = unsafe { zeroed() };
    msg.msg_iov = &raw mut iov;
    msg.msg_iovlen = 1;
    if let Some(fd) = fd {
        msg.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: CMSG_* are address arithmetic inside `control`, which holds one int with room.
        unsafe {
            msg.msg_controllen = libc::CMSG_SPACE(size_of::<RawFd>() as u32) as usize;
            let c = libc::CMSG_FIRSTHDR(&raw const msg);
            (*c).cmsg_level = libc::SOL_SOCKET;
            (*c).cmsg_type = libc::SCM_RIGHTS;
            (*c).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as usize;
            libc::CMSG_DATA(c)
                .cast::<RawFd>()
                .write_unaligned(fd.as_raw_fd());
        }
    }
    loop {
        // SAFETY: msg points at live buffers.
        let ret = unsafe { libc::sendmsg(sock.as_raw_fd(), &raw const msg, libc::MSG_NOSIGNAL) };
        match check(ret as libc::c_long) {
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(e),
            Ok(_) => return Ok(()),
        }
    }
}

/// What is received here says from whom it is (unix(7), SO_PASSCRED).
pub fn want_senders(sock: BorrowedFd) -> Sys<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option's value is one int.
    check(
        unsafe {
            libc::setsockopt(
                sock.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PASSCRED,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        }
        .into(),
    )?;
    Ok(())
}

/// One packet.
pub struct Packet {
    /// Bytes in it; 0 is end of file.
    pub len: usize,
    /// The descriptor that came with it.
    pub fd: Option<OwnedFd>,
    /// The sender's pid as this process sees it; only after [`want_senders`].
    pub sender: Option<i32>,
}

/// recvmsg(2) of one packet and at most one descriptor. Length 0 is end of file.
pub fn recv(sock: BorrowedFd, buf: &mut [u8]) -> Sys<(usize, Option<OwnedFd>)> {
    recv_packet(sock, buf).map(|p| (p.len, p.fd))
}

/// As [`recv`], with the sender.
pub fn recv_packet(sock: BorrowedFd, buf: &mut [u8]) -> Sys<Packet> {
    let mut iov = libc::iovec {
        iov_base: buf.as_mut_ptr().cast(),
        iov_len: buf.len(),
    };
    let mut control = Control([0; CONTROL]);
    // SAFETY: zero is a valid msghdr.
    let mut msg: libc::msghdr = unsafe { zeroed() };
    msg.msg_iov = &raw mut iov;
    msg.msg_iovlen = 1;
    msg.msg_control = control.0.as_mut_ptr().cast();
    msg.msg_controllen = CONTROL;
    let n = loop {
        // SAFETY: msg points at live buffers.
        let ret = unsafe { libc::recvmsg(sock.as_raw_fd(), &raw mut msg, libc::MSG_CMSG_CLOEXEC) };
        match check(ret as libc::c_long) {
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(e),
            Ok(n) => break n as usize,
        }
    };
    let (mut fd, mut sender) = (None, None);
    // SAFETY: the kernel filled the control buffer; CMSG_* walk inside it. Every SCM_RIGHTS
    // element is a new descriptor that becomes ours; SCM_CREDENTIALS is one ucred.
    unsafe {
        let mut c = libc::CMSG_FIRSTHDR(&raw const msg);
        while !c.is_null() {
            if (*c).cmsg_level == libc::SOL_SOCKET && (*c).cmsg_type == libc::SCM_RIGHTS {
                let count = ((*c).cmsg_len - libc::CMSG_LEN(0) as usize) / size_of::<RawFd>();
                for i in 0..count {
                    let raw = libc::CMSG_DATA(c).cast::<RawFd>().add(i).read_unaligned();
                    fd = Some(OwnedFd::from_raw_fd(raw));
                }
            }
            if (*c).cmsg_level == libc::SOL_SOCKET && (*c).cmsg_type == libc::SCM_CREDENTIALS {
                let from = libc::CMSG_DATA(c).cast::<libc::ucred>().read_unaligned();
                sender = Some(from.pid);
            }
            c = libc::CMSG_NXTHDR(&raw const msg, c);
        }
    }
    Ok(Packet { len: n, fd, sender })
}

/// accept4(2), close-on-exec.
pub fn accept(sock: BorrowedFd) -> Sys<OwnedFd> {
    loop {
        // SAFETY: null addresses are allowed.
        let ret = unsafe {
            libc::accept4(
                sock.as_raw_fd(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                libc::SOCK_CLOEXEC,
            )
        };
        match check(ret.into()) {
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(e),
            // SAFETY: a new descriptor.
            Ok(fd) => return Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }),
        }
    }
}
