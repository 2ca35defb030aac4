//! What std's runtime would do before `fn main` and the program still needs.

/// Opens /dev/null in place of closed standard streams, so that no file opened later becomes one of
/// them, and ignores SIGPIPE, so that writing to a reader that left is an error and not death. Ends
/// the process when that can't be done.
pub fn prepare() {
    let mut streams = [0, 1, 2].map(|fd| libc::pollfd {
        fd,
        events: 0,
        revents: 0,
    });
    // SAFETY: an array of its own length; no thread runs yet; the path is a C string.
    unsafe {
        while libc::poll(streams.as_mut_ptr(), 3, 0) < 0 {
            match *libc::__errno_location() {
                libc::EINTR => {}
                // The limit on descriptors is below three: poll(2), EINVAL.
                _ => libc::abort(),
            }
        }
        for stream in streams {
            if stream.revents & libc::POLLNVAL != 0
                && libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) != stream.fd
            {
                libc::abort();
            }
        }
        if libc::signal(libc::SIGPIPE, libc::SIG_IGN) == libc::SIG_ERR {
            libc::abort();
        }
    }
}
