//! glibc's ld.so.cache: read the image's, write a new one.
